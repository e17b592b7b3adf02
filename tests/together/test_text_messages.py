"""Synapse lets the identity server prove phone numbers (`account_threepid_delegates.msisdn`), by the older API."""

import secrets

import requests

NUMBER, SHOWN = "+447700900", "07700 900{}"


def request_code(user, path, ending, country="GB"):
    """Asks Synapse for a text message to 07700 900 and three more digits; (client_secret, its answer)."""
    client_secret = secrets.token_hex(16)
    body = {
        "client_secret": client_secret,
        "country": country,
        "phone_number": SHOWN.format(ending),
        "send_attempt": 1,
    }
    return client_secret, user.call("POST", path, body)


def submit(neighbourhood, answer, client_secret, code):
    """Sends the code where Synapse said, as clients do."""
    body = {"sid": answer["sid"], "client_secret": client_secret, "token": code}
    return requests.post(answer["submit_url"], json=body, verify=neighbourhood.synapse.ca.root, timeout=30)


def test_a_phone_number_is_added_to_an_account_of_synapse(neighbourhood):
    user = neighbourhood.synapse.user("phone")
    client_secret, answer = request_code(user, "/v3/account/3pid/msisdn/requestToken", "111")
    # The code is proven at Synapse, which asks the identity server.
    assert answer["submit_url"].startswith(f"{neighbourhood.synapse.url}/")
    code = neighbourhood.sms.code_for(f"{NUMBER}111")

    wrong = submit(neighbourhood, answer, client_secret, "000000" if code != "000000" else "000001")
    assert wrong.status_code == 400 and not wrong.json().get("success"), wrong.text
    right = submit(neighbourhood, answer, client_secret, code)
    assert (right.status_code, right.json().get("success")) == (200, True), right.text
    body = {"sid": answer["sid"], "client_secret": client_secret}
    user.with_password("POST", "/v3/account/3pid/add", body)

    [threepid] = user.call("GET", "/v3/account/3pid")["threepids"]
    assert (threepid["medium"], threepid["address"]) == ("msisdn", f"{NUMBER}111".lstrip("+"))
    assert len(neighbourhood.sms.texts_to(f"{NUMBER}111")) == 1


def test_a_number_that_was_not_proven_is_not_added(neighbourhood):
    user = neighbourhood.synapse.user("phone")
    client_secret, answer = request_code(user, "/v3/account/3pid/msisdn/requestToken", "112")
    neighbourhood.sms.code_for(f"{NUMBER}112")
    body = {"sid": answer["sid"], "client_secret": client_secret}

    first = user.request("POST", "/v3/account/3pid/add", body)
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.user_id},
        "password": user.password,
        "session": first.json()["session"],
    }
    refused = user.request("POST", "/v3/account/3pid/add", {**body, "auth": auth})

    assert refused.status_code == 400, refused.text
    assert user.call("GET", "/v3/account/3pid")["threepids"] == []


def test_an_account_is_registered_with_a_phone_number(neighbourhood):
    somebody = neighbourhood.synapse.stranger()
    client_secret, answer = request_code(somebody, "/v3/register/msisdn/requestToken", "113")
    code = neighbourhood.sms.code_for(f"{NUMBER}113")
    assert submit(neighbourhood, answer, client_secret, code).json()["success"] is True

    body = {"username": f"registered{secrets.token_hex(4)}", "password": secrets.token_hex(16)}
    started = somebody.request("POST", "/v3/register", body)
    assert started.status_code == 401
    flows = [flow["stages"] for flow in started.json()["flows"]]
    assert ["m.login.msisdn"] in [[stage for stage in stages if stage != "m.login.dummy"] for stages in flows], flows
    credentials = {"sid": answer["sid"], "client_secret": client_secret}
    auth = {"type": "m.login.msisdn", "threepid_creds": credentials, "session": started.json()["session"]}
    done = somebody.call("POST", "/v3/register", {**body, "auth": auth})

    somebody.token = done["access_token"]
    [threepid] = somebody.call("GET", "/v3/account/3pid")["threepids"]
    assert (threepid["medium"], threepid["address"]) == ("msisdn", f"{NUMBER}113".lstrip("+"))


def test_a_phone_number_is_published_and_found(neighbourhood):
    """By the present API, without Synapse in between."""
    alice, bob = neighbourhood.person("alice"), neighbourhood.person("bob")
    client_secret = secrets.token_hex(16)
    body = {"client_secret": client_secret, "country": "GB", "phone_number": "07700 900114", "send_attempt": 1}
    sid = alice.call("POST", "/validate/msisdn/requestToken", json=body)["sid"]
    token = neighbourhood.sms.code_for(f"{NUMBER}114")
    body = {"sid": sid, "client_secret": client_secret, "token": token}
    assert alice.call("POST", "/validate/msisdn/submitToken", json=body)["success"] is True
    body = {"sid": sid, "client_secret": client_secret, "mxid": alice.user.user_id}
    alice.call("POST", "/3pid/bind", json=body)

    assert bob.lookup("447700900114", medium="msisdn") == {"447700900114": alice.user.user_id}

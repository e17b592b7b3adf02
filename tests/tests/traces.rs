//! Traces: what the collector is told of requests, and what it is not told.

use http::Request;
use serde_json::{Value, json};
use waypost_tests::ca::Ca;
use waypost_tests::database::Database;
use waypost_tests::gateway::{ANDROID, IOS, NOTIFY, TestGateway, UNIFIED, WEB, android, event, metric};
use waypost_tests::homeserver::Homeserver;
use waypost_tests::http::{Api, Reply};
use waypost_tests::identity::{HOMESERVER, Link, TestIdentity, V2};
use waypost_tests::matrix::lookup_hash;
use waypost_tests::on_each_database;
use waypost_tests::otlp::{CLIENT, Collector, INTERNAL, SERVER, Span};
use waypost_tests::process::{IDENTITY, PUSH_GATEWAY, Server, TempFolder, command, eventually, text};
use waypost_tests::record::PATIENCE;
use waypost_tests::service::Service;
use waypost_tests::settings::Settings;
use waypost_tests::webpush::HOST;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const STATE: &str = "congo=t61rcWkgMzE";
const ALICE: &str = "@alice:hs.test";
const AWAY: &str = "the trace collector does not accept spans; retrying, and dropping spans once the queue is full";

/// POST of JSON by a caller with a span of its own; `flags` is `01` when the caller records the trace.
async fn post(api: &Api, path: &str, trace: &str, flags: &str, body: &Value) -> Reply {
    let request = Request::post(api.absolute(path))
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{trace}-{CALLER}-{flags}"))
        .header("tracestate", STATE)
        .body(body.to_string().into())
        .unwrap();
    api.send(request).await
}

async fn notify(gateway: &TestGateway, trace: &str, flags: &str, notification: &Value) -> Reply {
    post(&gateway.api, NOTIFY, trace, flags, &json!({"notification": notification})).await
}

/// A gateway that tells `collector`, whose certificate is one of `ca`.
async fn gateway(collector: &Collector, ca: &Ca, change: impl FnOnce(&mut Settings)) -> TestGateway {
    TestGateway::start_with(|settings, around| {
        let roots = format!("{}{}", around.ca.pem(), ca.pem());
        let roots = around.folder.write("roots.pem", &roots);
        settings.set("outbound", "extra_ca_file", text(&roots)).set("traces", "otlp_endpoint", collector.server.url());
        // Only a proxy is believed when it says that a request belongs to a trace.
        settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
        change(settings);
    })
    .await
}

/// Stops a server, after which all its spans are at the collector.
async fn stopped(server: Server, collector: &Collector) -> Vec<Span> {
    assert!(server.stop().await.success());
    collector.spans.all()
}

fn below<'s>(spans: &'s [Span], parent: &Span) -> Vec<&'s Span> {
    spans.iter().filter(|span| span.parent == parent.id && span.trace == parent.trace).collect()
}

#[tokio::test]
async fn a_stranger_does_not_decide_what_is_recorded() {
    for (ratio, spans) in [(0.0, 0), (1.0, 1)] {
        let ca = Ca::new();
        let collector = Collector::start(&ca).await;
        let gateway = gateway(&collector, &ca, |settings| {
            settings.set("server", "trusted_proxies", vec!["10.0.0.0/8"]).set("traces", "sample_ratio", ratio);
        })
        .await;
        let reply = notify(&gateway, TRACE, "01", &event("$1", &[])).await;
        assert_eq!(reply.ok(), json!({"rejected": []}));
        let recorded = stopped(gateway.server, &collector).await;
        assert_eq!(recorded.len(), spans, "{recorded:?}");
        assert!(recorded.iter().all(|span| span.trace != TRACE && span.state.is_empty()), "{recorded:?}");
    }
}

#[tokio::test]
async fn a_push_is_told_below_its_homeservers_request_and_nothing_of_it() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let gateway = gateway(&collector, &ca, |_| {}).await;
    let targets = Service::ALL.map(|service| service.target(&gateway, 1));
    let devices: Vec<Value> = targets.iter().map(|target| target.device()).collect();
    let reply = notify(&gateway, TRACE, "01", &event("$secret-event", &devices)).await;
    assert_eq!(reply.ok(), json!({"rejected": []}));

    let TestGateway { server, apns, fcm, webpush, unifiedpush, .. } = gateway;
    let spans = stopped(server, &collector).await;
    assert!(spans.iter().all(|span| span.trace == TRACE && span.state == STATE), "{spans:?}");
    assert!(spans.iter().all(|span| span.service == "waypost-push-gateway"), "{spans:?}");
    let ours = spans.iter().find(|span| span.kind == SERVER).unwrap();
    assert_eq!((ours.parent.as_str(), ours.name.as_str()), (CALLER, "POST /_matrix/push/v1/notify"));
    assert!(!ours.failed);
    for (key, expected) in [
        ("http.request.method", "POST"),
        ("http.route", NOTIFY),
        ("http.response.status_code", "200"),
        ("waypost.request_id", reply.header("x-request-id")),
    ] {
        assert_eq!(ours.attribute(key), expected, "{key}");
    }
    let attempts = below(&spans, ours);
    assert_eq!(attempts.len(), 4);
    for (app, provider, host) in [
        (IOS, "apns", "127.0.0.1"),
        (ANDROID, "fcm", "127.0.0.1"),
        (WEB, "webpush", HOST),
        (UNIFIED, "unifiedpush", HOST),
    ] {
        let attempt = attempts.iter().find(|span| span.attribute("waypost.app") == app).unwrap();
        assert_eq!((attempt.kind, attempt.name.as_str()), (INTERNAL, "push attempt"));
        assert_eq!(attempt.attribute("waypost.provider"), provider);
        assert_eq!(attempt.attribute("waypost.outcome"), "delivered");
        let calls = below(&spans, attempt);
        assert!(!calls.is_empty(), "{app}");
        for call in calls {
            assert_eq!((call.kind, call.name.as_str()), (CLIENT, "POST"), "{app}");
            assert_eq!(call.attribute("server.address"), host, "{app}");
            assert!(ours.begun_ns <= call.begun_ns && call.ended_ns <= ours.ended_ns, "{app}");
        }
    }

    // Strangers are not told of the trace, and the collector is not told of anybody.
    let told = collector.text();
    let mut secrets: Vec<String> =
        ["$secret-event", "!slw48wfj34rtnrf", "@exampleuser", "Mission Control", "peculiar"].map(str::to_owned).into();
    for target in &targets {
        secrets.extend([target.pushkey(), target.key().to_owned()]);
    }
    for server in [&apns.server, &fcm.server, &webpush.server, &unifiedpush.server] {
        for request in server.requests.all() {
            assert_eq!((request.header("traceparent"), request.header("tracestate")), ("", ""), "{}", request.path);
            secrets.push(request.path.clone());
            secrets.extend(request.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned()));
        }
    }
    for secret in secrets {
        assert!(secret.len() > 4 && !told.contains(&secret), "{secret} in {told}");
    }
}

on_each_database! {
    async fn nothing_of_a_person_is_in_a_span(database: Database) {
        let ca = Ca::new();
        let collector = Collector::start(&ca).await;
        let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
        let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
            settings.set("traces", "otlp_endpoint", collector.server.url());
            settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
        })
        .await;
        let openid = t.homeserver.issue(ALICE);
        let body = json!({
            "access_token": openid,
            "token_type": "Bearer",
            "matrix_server_name": HOMESERVER,
            "expires_in": 3600,
        });
        let reply = post(&t.api, &format!("{V2}/account/register"), TRACE, "01", &body).await.ok();
        let token = reply["token"].as_str().unwrap().to_owned();
        let (sid, mail) = t.open_session(&token, "alice@example.com", "monkeys-and-more").await;
        let link = Link::parse(&mail.link());
        assert_eq!(t.press_button(&link).await.status, 200);
        t.bind(&token, &sid, "monkeys-and-more", ALICE).await.ok();
        assert_eq!(t.who_is(&token, "alice@example.com").await.as_deref(), Some(ALICE));
        let pepper = t.pepper(&token).await;
        assert_eq!(t.api.get("/no/such/path/as-this?secret=query", None).await.status, 404);

        let TestIdentity { server, homeserver, .. } = t;
        let spans = stopped(server, &collector).await;
        let register = spans.iter().find(|span| span.trace == TRACE && span.kind == SERVER).unwrap();
        assert_eq!((register.parent.as_str(), register.service.as_str()), (CALLER, "waypost-identity"));
        assert_eq!(register.name, format!("POST {V2}/account/register"));
        let call = below(&spans, register).into_iter().find(|span| span.name == "GET").unwrap();
        assert_eq!((call.kind, call.attribute("server.address")), (CLIENT, HOMESERVER));
        assert_eq!(call.attribute("http.response.status_code"), "200");

        let system = if database == Database::Postgres { "postgresql" } else { "sqlite" };
        let transactions: Vec<_> = spans.iter().filter(|span| span.name == "transaction").collect();
        assert!(!transactions.is_empty());
        for transaction in transactions {
            assert_eq!(transaction.attribute("db.system.name"), system);
            assert!(spans.iter().any(|span| span.id == transaction.parent && span.kind == SERVER));
        }
        assert!(spans.iter().any(|span| span.name == "mail" && span.kind == CLIENT && !span.failed));
        let unknown = spans.iter().find(|span| span.attribute("http.response.status_code") == "404").unwrap();
        assert_eq!((unknown.name.as_str(), unknown.attribute("http.route"), unknown.failed), ("GET", "", false));

        let told = collector.text();
        let mut secrets = vec![
            openid,
            token,
            sid,
            link.token,
            lookup_hash("alice@example.com", "email", &pepper),
            pepper,
        ];
        for said in ["alice", "example.com", "monkeys", "as-this", "secret=", "userinfo", "access_token"] {
            secrets.push(said.to_owned());
        }
        for secret in secrets {
            assert!(!secret.is_empty() && !told.contains(&secret), "{secret} in {told}");
        }
        for request in homeserver.server.requests.all() {
            assert_eq!(request.header("traceparent"), "", "{}", request.path);
        }
    }
}

#[tokio::test]
async fn what_a_caller_does_not_record_is_not_sent() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let gateway = gateway(&collector, &ca, |settings| {
        settings.set("traces", "sample_ratio", 0.0);
    })
    .await;
    let recorded = "11111111111111111111111111111111";
    notify(&gateway, TRACE, "00", &event("$1", &[android("one")])).await.ok();
    gateway.notify(&event("$2", &[android("two")])).await.ok();
    notify(&gateway, recorded, "01", &event("$3", &[android("three")])).await.ok();
    let spans = stopped(gateway.server, &collector).await;
    assert!(!spans.is_empty() && spans.iter().all(|span| span.trace == recorded), "{spans:?}");
}

#[tokio::test]
async fn a_failure_of_ours_is_one_in_its_span_and_its_log_line_names_the_trace() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let gateway = gateway(&collector, &ca, |_| {}).await;
    let unknown = json!({"app_id": "org.example.unknown", "pushkey": "mine"});
    assert_eq!(notify(&gateway, TRACE, "01", &event("$1", &[unknown])).await.status, 503);
    for message in ["no entry of `apps` matches this app_id", "request failed temporarily"] {
        let line = gateway.server.wait_for_log(message, |line| line["message"] == message).await;
        assert_eq!(line["trace_id"], TRACE, "{line}");
    }
    let listening = gateway.server.wait_for_log("its start", |line| line["message"] == "listening").await;
    assert!(listening["trace_id"].is_null(), "{listening}");
    let span = collector.span("the failed request", |span| span.kind == SERVER).await;
    assert!(span.failed);
    assert_eq!((span.attribute("http.response.status_code"), span.attribute("error.type")), ("503", "503"));
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_request() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("traces", "otlp_endpoint", format!("http://{nobody}")).set("traces", "timeout_secs", 1);
        settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
    })
    .await;
    for number in 0..20 {
        gateway.rejected(&event(&format!("${number}"), &[android("one")])).await;
    }
    gateway.server.wait_for_log("the warning", |line| line["message"] == AWAY && line["level"] == "WARN").await;
    // Three spans of each request: itself, the attempt, the call. They are given up after some tries.
    eventually(PATIENCE, "spans that are given up", || async {
        let refused = metric(&gateway.server, "waypost_push_gateway_spans_total{outcome=\"refused\"}").await;
        refused.filter(|count| *count >= 60.0)
    })
    .await;
    gateway.rejected(&event("$last", &[android("one")])).await;
    let warnings = gateway.server.logs().iter().filter(|line| line["message"] == AWAY).count();
    assert_eq!(warnings, 1);
    assert!(gateway.server.stop().await.success());
}

#[tokio::test]
async fn spans_wait_for_a_collector_that_is_busy() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let gateway = gateway(&collector, &ca, |_| {}).await;
    collector.answer(503);
    notify(&gateway, TRACE, "01", &event("$1", &[android("one")])).await.ok();
    gateway.server.wait_for_log("the warning", |line| line["message"] == AWAY).await;
    assert!(collector.spans.is_empty());
    collector.answer(200);
    collector.span("the request's span", |span| span.trace == TRACE && span.kind == SERVER).await;
    let again = "the trace collector accepts spans again";
    gateway.server.wait_for_log(again, |line| line["message"] == again).await;
}

#[tokio::test]
async fn spans_that_the_collector_rejects_are_counted() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let gateway = gateway(&collector, &ca, |_| {}).await;
    // More than a batch can hold, so all of them.
    collector.reject(1_000);
    notify(&gateway, TRACE, "01", &event("$1", &[android("one")])).await.ok();
    let count = async |outcome| {
        let name = format!("waypost_push_gateway_spans_total{{outcome=\"{outcome}\"}}");
        metric(&gateway.server, &name).await.unwrap()
    };
    eventually(PATIENCE, "rejected spans", || async { (count("refused").await >= 3.0).then_some(()) }).await;
    assert_eq!(count("exported").await, 0.0);
    collector.reject(0);
    notify(&gateway, TRACE, "01", &event("$2", &[android("one")])).await.ok();
    eventually(PATIENCE, "exported spans", || async { (count("exported").await >= 3.0).then_some(()) }).await;
    assert_eq!(count("dropped").await, 0.0);
}

#[tokio::test]
async fn the_standard_variables_name_a_collector_too() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    // The first one only writes the configuration, which has no section `[traces]`.
    let gateway = TestGateway::start_with(|settings, around| {
        let roots = format!("{}{}", around.ca.pem(), ca.pem());
        let roots = around.folder.write("roots.pem", &roots);
        settings.set("outbound", "extra_ca_file", text(&roots));
        settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
    })
    .await;
    let config = std::fs::read_to_string(gateway.server.config_file()).unwrap();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.server.url()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=tenant%20one".to_owned()),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off".to_owned()),
        ("OTEL_SERVICE_NAME", "push".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
    ];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let server = Server::start_in(&variables, PUSH_GATEWAY, TempFolder::new(), &config).await;
    let api = Api::new(&server.public);
    let push = |event: &str| json!({"notification": waypost_tests::gateway::event(event, &[android("one")])});
    api.post(NOTIFY, None, &push("$1")).await.ok();
    post(&api, NOTIFY, TRACE, "01", &push("$2")).await.ok();
    let span = collector.span("the recorded request", |span| span.kind == SERVER).await;
    assert_eq!((span.trace.as_str(), span.service.as_str()), (TRACE, "push"));
    assert_eq!(span.resource["deployment.environment.name"], "test");
    assert_eq!(collector.server.requests.all()[0].header("x-scope-orgid"), "tenant one");
    let spans = stopped(server, &collector).await;
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:?}");
}

#[test]
fn a_wrong_variable_is_a_mistake_of_the_configuration() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let folder = TempFolder::new();
        let check = |endpoint: &str| {
            let output = command(name)
                .arg("check-config")
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
                .env("OTEL_TRACES_SAMPLER", "swordfish")
                .current_dir(folder.path())
                .output()
                .unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, said) = check("http://127.0.0.1:4318");
        let expected = "environment variable OTEL_TRACES_SAMPLER: must be always_on, always_off or traceidratio";
        assert!(code == Some(2) && said.contains(expected) && !said.contains("swordfish"), "{name}: {code:?} {said}");
        // It matters only where there is a collector.
        let (_, said) = check("");
        assert!(!said.contains("OTEL"), "{name}: {said}");
    }
}

#[tokio::test]
async fn a_secret_header_goes_to_the_collector_and_may_be_swapped() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let secrets = TempFolder::new();
    let file = secrets.write("token", "Bearer swordfish-one\n");
    let gateway = gateway(&collector, &ca, |settings| {
        settings.set("traces.headers", "X-Scope-OrgID", "tenant").set(
            "traces.header_files",
            "Authorization",
            text(&file),
        );
    })
    .await;
    let asked = async |trace: &str| {
        notify(&gateway, trace, "01", &event(&format!("${trace}"), &[android("one")])).await.ok();
        // Ids are bytes in Protobuf.
        let id: Vec<u8> = (0..16).map(|n| u8::from_str_radix(&trace[2 * n..2 * n + 2], 16).unwrap()).collect();
        let has_id = |body: &[u8]| body.windows(id.len()).any(|bytes| bytes == id);
        collector.server.requests.wait_for("the spans", |request| has_id(&request.body)).await
    };
    let request = asked(TRACE).await;
    let sent = (request.header("authorization"), request.header("x-scope-orgid"));
    assert_eq!(sent, ("Bearer swordfish-one", "tenant"));

    secrets.write("token", "Bearer swordfish-two\n");
    let taken = "configuration reloaded";
    gateway.server.wait_for_log(taken, |line| line["message"] == taken).await;
    let request = asked("22222222222222222222222222222222").await;
    assert_eq!(request.header("authorization"), "Bearer swordfish-two");

    // The ratio waits for the next start.
    gateway.server.change_config(|config| config.replace("[traces]\n", "[traces]\nsample_ratio = 0.5\n"));
    gateway.server.hang_up();
    let waiting = gateway.server.wait_for_log("the keys that wait", |line| !line["keys"].is_null()).await;
    assert_eq!(waiting["keys"], "traces.sample_ratio");
    assert!(!gateway.server.log_text().contains("swordfish"));
}

#[tokio::test]
async fn a_time_is_shown_with_the_trace_that_took_it() {
    let ca = Ca::new();
    let collector = Collector::start(&ca).await;
    let gateway = gateway(&collector, &ca, |_| {}).await;
    notify(&gateway, TRACE, "01", &event("$1", &[android("one")])).await.ok();
    let shown = Api::new(&gateway.server.operations).get("/metrics", None).await.text;
    let exemplar = format!(" # {{trace_id=\"{TRACE}\"}} ");
    for (name, label) in [
        ("waypost_push_gateway_http_request_seconds_bucket", format!("route=\"{NOTIFY}\"")),
        ("waypost_push_gateway_push_attempt_seconds_bucket", format!("app=\"{ANDROID}\"")),
    ] {
        let lines = shown.lines().filter(|line| line.starts_with(name) && line.contains(&label));
        assert_eq!(lines.filter(|line| line.contains(&exemplar)).count(), 1, "{name}: {shown}");
    }
    // The status page reads the same text.
    let status = Api::new(&gateway.server.operations).get("/status", None).await.ok();
    assert!(status["metrics"].as_array().unwrap().len() > 20);
}

#[tokio::test]
async fn without_the_section_there_are_no_traces() {
    let gateway = TestGateway::start().await;
    let unknown = json!({"app_id": "org.example.unknown", "pushkey": "mine"});
    assert_eq!(notify(&gateway, TRACE, "01", &event("$1", &[unknown])).await.status, 503);
    let message = "request failed temporarily";
    let line = gateway.server.wait_for_log(message, |line| line["message"] == message).await;
    assert!(line["trace_id"].is_null(), "{line}");
    let shown = Api::new(&gateway.server.operations).get("/metrics", None).await.text;
    assert!(!shown.contains("trace_id"), "{shown}");
    for outcome in ["exported", "refused", "dropped"] {
        let name = format!("waypost_push_gateway_spans_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metric(&gateway.server, &name).await, Some(0.0), "{name}");
    }
}

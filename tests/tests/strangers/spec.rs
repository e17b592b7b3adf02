//! Requests made from the specification's own description of the API, as they should be and broken in thousands of ways:
//! none is answered with 500, none is logged as a failure of ours, and none is kept in memory.

use std::path::Path;

use ::http::Request;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use waypost_tests::database::Database;
use waypost_tests::dns::Dns;
use waypost_tests::gateway::{ANDROID, IOS, NOTIFY, TestGateway, UNIFIED};
use waypost_tests::http::Api;
use waypost_tests::identity::TestIdentity;
use waypost_tests::process::Server;

const ROUNDS: usize = 100;
const MIB: usize = 1024 * 1024;

/// A generator of random numbers (splitmix64), always the same ones.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// An endpoint with an example of its parameters.
#[derive(Clone, Debug)]
struct Endpoint {
    method: String,
    path: String,
    query: Vec<String>,
    body: Option<Value>,
}

/// The endpoints that a file describes.
fn endpoints(file: &str) -> Vec<Endpoint> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/spec").join(file);
    let spec: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut endpoints = Vec::new();
    for (path, methods) in spec["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let query = parameters.iter().filter(|parameter| parameter["in"] == "query");
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            endpoints.push(Endpoint {
                method: method.to_ascii_uppercase(),
                path: path.replace("{keyId}", "ed25519:0"),
                query: query.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect(),
                body: schema.is_object().then(|| example(schema)),
            });
        }
    }
    endpoints
}

/// The example of a schema; made from its properties if it has none.
fn example(schema: &Value) -> Value {
    if !schema["example"].is_null() {
        return schema["example"].clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            Value::Object(properties.iter().map(|(name, schema)| (name.clone(), example(schema))).collect())
        }
        Some("array") => json!([example(&schema["items"])]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        _ => json!("text"),
    }
}

/// What no parameter expects.
fn odd(random: &mut Random) -> Value {
    let nested = (0..100).fold(json!(1), |value, _| json!([value]));
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1.5),
        json!(1e308),
        json!(""),
        json!(" "),
        json!("\0"),
        json!("\r\nX: y"),
        json!("\u{202e}\u{feff}\u{1f98a}"),
        json!("%00%ff"),
        json!("@:"),
        json!("@a:b:c:99999"),
        json!("[::1]:1"),
        json!("a@[127.0.0.1]"),
        json!("+999999999999999999"),
        json!("https://[::ffff:127.0.0.1]:0/"),
        json!("x".repeat(10_000)),
        json!([]),
        json!({}),
        json!(["a", "a", 1, null]),
        json!({"a": {"b": {"c": []}}}),
        json!(vec![1; 300]),
        nested,
    ];
    random.pick(&values).clone()
}

/// Replaces, adds or removes something somewhere in a value.
fn break_somewhere(random: &mut Random, value: &mut Value) {
    let go_deeper = random.below(3) > 0;
    match value {
        Value::Object(object) if !object.is_empty() => {
            let keys: Vec<String> = object.keys().cloned().collect();
            let key = random.pick(&keys).clone();
            match random.below(6) {
                0 => drop(object.remove(&key)),
                1 => drop(object.insert(odd_text(random), odd(random))),
                _ if go_deeper => break_somewhere(random, object.get_mut(&key).unwrap()),
                _ => drop(object.insert(key, odd(random))),
            }
        }
        Value::Array(array) if !array.is_empty() => {
            let at = random.below(array.len());
            match random.below(4) {
                0 => drop(array.remove(at)),
                1 => array.push(odd(random)),
                _ => break_somewhere(random, &mut array[at]),
            }
        }
        other => *other = odd(random),
    }
}

fn odd_text(random: &mut Random) -> String {
    match odd(random) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Breaks the text of a body, which may be no JSON afterwards.
fn break_text(random: &mut Random, text: &mut Vec<u8>) {
    let at = random.below(text.len().max(1));
    match random.below(7) {
        0 => text.truncate(at),
        1 if !text.is_empty() => text[at] ^= 1 << random.below(8),
        2 => text.splice(at..at, *b"\xff\xfe").for_each(drop),
        3 => text.splice(at..at, *br#""\ud800""#).for_each(drop),
        4 => {
            let again = text.clone();
            text.extend(again);
        }
        5 => text.splice(0..0, "[".repeat(3000).into_bytes()).for_each(drop),
        _ => text.clear(),
    }
}

/// Sends one request, broken in up to three ways; returns its status.
async fn send(api: &Api, random: &mut Random, endpoint: &Endpoint, token: Option<&str>) -> u16 {
    let breaks = random.below(4);
    let mut body = endpoint.body.clone();
    let mut query: Vec<(String, String)> =
        endpoint.query.iter().map(|name| (name.clone(), "text".to_owned())).collect();
    for _ in 0..breaks {
        match &mut body {
            Some(body) => break_somewhere(random, body),
            None => query.push((odd_text(random), odd_text(random))),
        }
    }
    let mut text = body.as_ref().map(|body| body.to_string().into_bytes()).unwrap_or_default();
    if breaks > 0 && random.below(4) == 0 {
        break_text(random, &mut text);
    }
    let mut address = url::Url::parse(&api.absolute(&endpoint.path)).unwrap();
    if !query.is_empty() {
        // What is longer makes a URL that no client could send.
        address.query_pairs_mut().extend_pairs(query.iter().map(|(name, value)| {
            let short = |text: &str| text.chars().take(200).collect::<String>();
            (short(name), short(value))
        }));
    }
    let content_type = *random.pick(&["application/json", "application/x-www-form-urlencoded", "text/plain", ""]);
    let mut request = Request::builder().method(endpoint.method.as_str()).uri(address.as_str());
    if !content_type.is_empty() {
        request = request.header("content-type", content_type);
    }
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let reply = api.send(request.body(Bytes::from(text)).unwrap()).await;
    assert!(
        reply.status < 500 || matches!(reply.status, 502 | 503),
        "{} {} {:?}: {} {}",
        endpoint.method,
        address.path(),
        body,
        reply.status,
        reply.text
    );
    reply.status
}

/// That nothing was a failure of ours, and that memory is about what it was.
fn assert_sound(server: &Server, before: usize) {
    let failures: Vec<_> = server.logs().into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert!(failures.is_empty(), "{failures:?}");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 48 * MIB, "{} MiB", grown / MIB);
}

#[tokio::test]
async fn broken_requests_to_the_identity_server_are_never_a_failure_of_ours() {
    let dns = Dns::start().await;
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        settings.set("outbound", "dns_servers", vec![dns.address.to_string()]);
        settings.set("lookup", "allow_none", true);
    })
    .await;
    let token = t.register("@alice:hs.test").await;
    let endpoints = endpoints("identity.json");
    assert!(endpoints.len() > 20, "the description was read");
    let mut random = Random(1);
    let mut seen = Map::new();
    let mut before = 0;
    for round in 0..ROUNDS {
        for endpoint in &endpoints {
            // A logout would end the rest.
            let with_token = random.below(4) > 0 && !endpoint.path.ends_with("/logout");
            let status = send(&t.api, &mut random, endpoint, with_token.then_some(token.as_str())).await;
            let count = seen.entry(status.to_string()).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap() + 1);
        }
        if round == ROUNDS / 3 {
            before = t.server.memory();
        }
    }
    // They get past the first checks: some are good, and some are wrong in each way.
    for status in ["200", "400", "401", "403", "404"] {
        assert!(seen.contains_key(status), "{status}: {seen:?}");
    }
    assert_sound(&t.server, before);
    t.get("/account", Some(&token)).await.ok();
}

#[tokio::test]
async fn broken_requests_to_the_push_gateway_are_never_a_failure_of_ours() {
    let gateway = TestGateway::start().await;
    let endpoint = endpoints("push-gateway.json").remove(0);
    assert_eq!(endpoint.path, NOTIFY);
    let mut random = Random(2);
    let mut before = 0;
    let mut delivered = 0;
    for round in 0..10 * ROUNDS {
        let mut endpoint = endpoint.clone();
        let device = &mut endpoint.body.as_mut().unwrap()["notification"]["devices"][0];
        let (app_id, pushkey) = match random.below(4) {
            0 => (ANDROID, "a token of a device".to_owned()),
            1 => (IOS, "V2h5IG9uIGVhcnRoIGRpZCB5b3UgZGVjb2RlIHRoaXM/".to_owned()),
            2 => (UNIFIED, gateway.unifiedpush.endpoint("phone")),
            _ => ("org.example.unknown", "x".to_owned()),
        };
        device["app_id"] = json!(app_id);
        device["pushkey"] = json!(pushkey);
        device["data"] = json!({"format": "event_id_only", "default_payload": {"aps": {"alert": {}}}});
        endpoint.body.as_mut().unwrap()["notification"]["event_id"] = json!(format!("${round}"));
        delivered += usize::from(send(&gateway.api, &mut random, &endpoint, None).await == 200);
        if round == 10 * ROUNDS / 3 {
            before = gateway.server.memory();
        }
    }
    assert!(delivered > ROUNDS, "some were good: {delivered}");
    assert_sound(&gateway.server, before);
}

//! A request costs in proportion to its size, on every route and for every form of body.

use std::time::Duration;

use ::http::{Method, Request};
use bytes::Bytes;
use waypost_tests::database::Database;
use waypost_tests::gateway::TestGateway;
use waypost_tests::http::Api;
use waypost_tests::identity::TestIdentity;
use waypost_tests::process::Server;

const IDENTITY_ROUTES: &str = include_str!("../../../identity/src/routes.rs");
const PUSH_ROUTES: &str = include_str!("../../../push-gateway/src/routes.rs");

const SMALL_BODY: usize = 64 * 1024;
const LARGE_BODY: usize = 1024 * 1024;
/// The longest query that is tried; a request's head has 64 KiB in all.
const LONGEST_QUERY: usize = 32 * 1024;

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

/// Requests of one size that are measured together: a single one takes less than a scheduler's turn.
const TOGETHER: u32 = 3;
/// Four times the size may cost so many times the CPU. What is quadratic costs sixteen times as much.
const GROWTH: f64 = 6.0;
/// The CPU has other work too, so the best of so many measurements counts.
const MEASUREMENTS: usize = 4;

/// Parameters that endpoints read, filled with text by some of the bodies.
const NAMES: [&str; 14] = [
    "access_token",
    "matrix_server_name",
    "user_accepts",
    "addresses",
    "algorithm",
    "pepper",
    "client_secret",
    "email",
    "phone_number",
    "next_link",
    "sid",
    "token",
    "mxid",
    "address",
];

/// The routes of one method in a table of routes, with whether they take large bodies.
fn routes(table: &str, method: Method) -> Vec<(String, bool)> {
    let calls: &[_] =
        if method == Method::GET { &[(".get(\"", false)] } else { &[(".post(\"", false), (".post_large(\"", true)] };
    let mut found = Vec::new();
    for (call, is_large) in calls {
        let paths = table.split(call).skip(1).filter_map(|rest| rest.split_once('"'));
        found.extend(paths.map(|(path, _)| (path.replace(['{', '}'], ""), *is_large)));
    }
    found
}

/// Bodies of about `size` bytes, each of another kind, by name.
fn bodies(size: usize) -> Vec<(&'static str, &'static str, String)> {
    let names = |count: usize| (0..count).map(|number| format!("{number:x}"));
    let filled = |with: &str| {
        let text = with.repeat(size / NAMES.len() / with.len().max(1));
        let pairs: Vec<_> = NAMES.iter().map(|name| format!("\"{name}\":\"{text}\"")).collect();
        format!("{{{}}}", pairs.join(","))
    };
    let twice: String = names(size / 12).map(|name| format!("{name}&")).collect();
    let keys = |count: usize| names(count).map(|name| format!("\"{name}\":1")).collect::<Vec<_>>().join(",");
    vec![
        ("names given twice", FORM, twice.repeat(2)),
        ("a long value", FORM, format!("token={}", "a".repeat(size))),
        ("an encoded value", FORM, format!("token={}", "%41".repeat(size / 3))),
        ("nothing but separators", FORM, "&".repeat(size)),
        ("many keys", JSON, format!("{{{}}}", keys(size / 10))),
        ("keys given twice", JSON, format!("{{{0},{0}}}", keys(size / 20))),
        ("many numbers", JSON, format!("{{\"addresses\":[{}]}}", vec!["1"; size / 2].join(","))),
        ("many texts", JSON, format!("{{\"addresses\":[{}]}}", vec!["\"a\""; size / 4].join(","))),
        ("many lists", JSON, format!("{{\"a\":[{}]}}", vec!["[[[[]]]]"; size / 9].join(","))),
        ("devices", JSON, format!("{{\"notification\":{{\"devices\":[{}]}}}}", vec!["{}"; size / 3].join(","))),
        ("texts of letters", JSON, filled("a")),
        ("texts of addresses", JSON, filled("a@b.")),
        ("texts of URLs", JSON, filled("https://a./")),
        ("texts of digits", JSON, filled("1")),
        ("texts of marks", JSON, filled("\u{301}")),
        ("texts of escapes", JSON, filled("\\u0041")),
        ("white space", JSON, format!("{{}}{}", " ".repeat(size))),
    ]
}

/// Queries of about `size` bytes.
fn queries(size: usize) -> Vec<(&'static str, String)> {
    let twice: String = (0..size / 10).map(|number| format!("{number:x}&")).collect();
    vec![
        ("names given twice", twice.repeat(2)),
        ("a long value", format!("public_key={}", "a".repeat(size))),
        ("an encoded value", format!("token={}", "%41".repeat(size / 3))),
    ]
}

/// Asserts that what `request` makes of a size costs in proportion to it.
async fn assert_proportional(
    server: &Server,
    api: &Api,
    what: &str,
    largest: usize,
    request: impl Fn(usize) -> Request<Bytes>,
) {
    let mut seen = Vec::new();
    for _ in 0..MEASUREMENTS {
        let mut cpu = [Duration::ZERO; 2];
        for (size, cpu) in [largest / 4, largest].into_iter().zip(&mut cpu) {
            let before = server.cpu();
            for _ in 0..TOGETHER {
                let reply = api.send(request(size)).await;
                // 502 is a homeserver that a made-up name leads to.
                assert_ne!(reply.status, 500, "{what}: {}", reply.text);
                assert!(!matches!(reply.status, 414 | 431), "{what}: not even read");
                assert!(!reply.text.contains("The body is larger"), "{what}: not even read");
            }
            *cpu = server.cpu() - before;
        }
        let [quarter, whole] = cpu;
        if whole.as_secs_f64() <= quarter.as_secs_f64() * GROWTH {
            return;
        }
        seen.push(cpu);
    }
    panic!("{what}: four times the size costs more than {GROWTH} times the CPU: {seen:?}");
}

async fn assert_all_proportional(server: &Server, api: &Api, table: &str, token: Option<&str>) {
    let authorized = |request: ::http::request::Builder| match token {
        Some(token) => request.header("authorization", format!("Bearer {token}")),
        None => request,
    };
    let posts = routes(table, Method::POST);
    assert!(!posts.is_empty());
    for (path, is_large) in posts {
        let limit = if is_large { LARGE_BODY } else { SMALL_BODY };
        for (number, (kind, content_type, _)) in bodies(0).into_iter().enumerate() {
            assert_proportional(server, api, &format!("POST {path}, {kind}"), limit - 512, |size| {
                let (_, _, body) = bodies(size).swap_remove(number);
                let request = Request::post(api.absolute(&path)).header("content-type", content_type);
                authorized(request).body(Bytes::from(body)).unwrap()
            })
            .await;
        }
    }
    for (path, _) in routes(table, Method::GET) {
        for (number, (kind, _)) in queries(0).into_iter().enumerate() {
            assert_proportional(server, api, &format!("GET {path}, {kind}"), LONGEST_QUERY, |size| {
                let (_, query) = queries(size).swap_remove(number);
                authorized(Request::get(api.absolute(&format!("{path}?{query}")))).body(Bytes::new()).unwrap()
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_request_to_the_identity_server_costs_in_proportion_to_its_size() {
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        settings.set("v1", "mode", "full").set("v1", "allow", vec!["127.0.0.0/8"]).set("log", "level", "info");
    })
    .await;
    let token = t.register("@alice:hs.test").await;
    let (public, _internal) = IDENTITY_ROUTES.split_once("fn internal_routes").unwrap();
    assert_eq!(routes(public, Method::POST).len(), 19);
    assert_all_proportional(&t.server, &t.api, public, Some(&token)).await;
}

#[tokio::test]
async fn a_request_to_the_push_gateway_costs_in_proportion_to_its_size() {
    let gateway = TestGateway::start().await;
    assert_all_proportional(&gateway.server, &gateway.api, PUSH_ROUTES, None).await;
}

#[tokio::test]
async fn only_lists_and_events_may_be_large() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let body = |size: usize| Bytes::from(format!("{{}}{}", " ".repeat(size - 2)));
    for (path, is_large) in routes(IDENTITY_ROUTES, Method::POST) {
        if !path.starts_with("/_matrix/identity/v2/") {
            continue;
        }
        let limit = if is_large { LARGE_BODY } else { SMALL_BODY };
        let reply = t.api.call(Method::POST, &path, None, body(limit)).await;
        assert_ne!(reply.status, 413, "{path}");
        let reply = t.api.call(Method::POST, &path, None, body(limit + 1)).await;
        assert_eq!((reply.status, reply.errcode().as_str()), (413, "M_TOO_LARGE"), "{path}");
    }
}

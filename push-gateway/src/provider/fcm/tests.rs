//! The meaning of Google's answers.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use waypost_shared::client::{Outbound, OutboundConfig};

use super::*;

fn fcm() -> Fcm {
    let outbound = OutboundConfig { dns_servers: vec!["127.0.0.1:53".parse().unwrap()], ..OutboundConfig::default() };
    let upstream = Upstream::new(Outbound::new(&outbound).unwrap(), Clock::manual(0));
    let config = FcmConfig {
        project_id: "a project".to_owned(),
        endpoint: "https://fcm.googleapis.com".to_owned(),
        ..FcmConfig::default()
    };
    let credentials = FcmCredentials::WorkloadIdentity { metadata_uri: "http://127.0.0.1:1".to_owned() };
    Fcm::new(config, credentials, &upstream)
}

fn outcome(status: u16, body: &Value) -> Outcome {
    let body = Bytes::from(body.to_string());
    let answer = Response::builder().status(status).header("retry-after", "7").body(body).unwrap();
    fcm().outcome(&answer)
}

#[tokio::test]
async fn each_answer_maps_to_its_outcome() {
    let code = |code: &str| {
        json!({"error": {"code": 404, "status": "NOT_FOUND", "details": [
            {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code},
        ]}})
    };
    let invalid = |field: &str| {
        json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [
            {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": field}]},
        ]}})
    };
    assert_eq!(outcome(200, &json!({"name": "projects/p/messages/1"})), Outcome::Delivered);
    assert_eq!(outcome(404, &code("UNREGISTERED")), Outcome::Gone);
    assert_eq!(outcome(400, &invalid("message.token")), Outcome::Gone);
    // Malformed details next to the relevant one.
    for odd in [json!(null), json!(5), json!([]), json!({"errorCode": 5}), json!({"fieldViolations": null})] {
        let mut unregistered = code("UNREGISTERED");
        unregistered["error"]["details"].as_array_mut().unwrap().insert(0, odd.clone());
        assert_eq!(outcome(404, &unregistered), Outcome::Gone, "{odd}");
        let mut bad_token = invalid("message.token");
        bad_token["error"]["details"].as_array_mut().unwrap().insert(0, odd.clone());
        assert_eq!(outcome(400, &bad_token), Outcome::Gone, "{odd}");
    }
    assert_eq!(outcome(404, &json!({"error": {"status": "UNREGISTERED", "details": null}})), Outcome::Gone);
    for (status, body, expected) in [
        (404, json!({"error": {"status": "NOT_FOUND"}}), Fault::App),
        (404, json!("no JSON of FCM's"), Fault::App),
        (400, invalid("message.data[0].value"), Fault::Push),
        (400, json!({"error": {"status": "INVALID_ARGUMENT", "message": "Message too big"}}), Fault::Push),
        (400, invalid("message.android.ttl"), Fault::App),
        (400, json!("no JSON of FCM's"), Fault::App),
        (401, json!({}), Fault::App),
        (403, code("SENDER_ID_MISMATCH"), Fault::App),
        (403, json!({}), Fault::App),
        (302, json!({}), Fault::App),
    ] {
        let Outcome::Refused(refusal) = outcome(status, &body) else { panic!("{status} {body} is refused") };
        assert_eq!(refusal.fault, expected, "{status} {body}");
    }
    for status in [408, 421, 425, 429, 500, 503] {
        let busy = Outcome::Busy { retry_after: Some(Duration::from_secs(7)) };
        assert_eq!(outcome(status, &json!({})), busy, "{status}");
    }
}

#[tokio::test]
async fn the_project_id_is_escaped_in_the_path() {
    assert_eq!(fcm().uri, "https://fcm.googleapis.com/v1/projects/a%20project/messages:send");
}

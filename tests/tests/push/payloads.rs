//! What each app that people use gets to read: the fixtures in `fixtures/`.

use serde_json::{Value, json};
use waypost_tests::gateway::{Around, TestGateway, unifiedpush_app, with};
use waypost_tests::settings::Settings;
use waypost_tests::webpush::Subscriber;

/// What left for a push service.
struct Pushed {
    /// Its body as it went over the wire.
    body: Vec<u8>,
    /// What the fixture is about.
    payload: Value,
}

async fn check(fixture: &str) {
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let app = &fixture["app"];
    let kind = service(app);
    let gateway = TestGateway::start_apps(|settings, around| configure(settings, around, app)).await;
    let browser = gateway.webpush.subscribe("fixture");
    for case in fixture["cases"].as_array().unwrap() {
        let name = &case["request"];
        let mut notification = case["notification"].clone();
        subscribe(&mut notification["devices"][0], kind, &gateway, &browser);
        let before = count(&gateway);
        assert_eq!(gateway.rejected(&notification).await, json!([]), "{name}");
        if case["pushed"].is_null() {
            assert_eq!(count(&gateway), before, "{name}: nothing is sent");
            continue;
        }
        assert_eq!(count(&gateway), before + 1, "{name}: one push is sent");
        let mut pushed = last(kind, &gateway, &browser);
        for key in case["json_texts"].as_array().into_iter().flatten() {
            let text = &mut pushed.payload["data"][key.as_str().unwrap()];
            *text = serde_json::from_str(text.as_str().unwrap()).unwrap();
        }
        assert_eq!(pushed.payload, case["pushed"], "{name}");
        assert!(pushed.body.len() <= 4096, "{name}: {} bytes", pushed.body.len());
        // Where it can be read: no byte is wasted on spaces.
        if let Ok(body) = serde_json::from_slice::<Value>(&pushed.body) {
            assert_eq!(body.to_string().len(), pushed.body.len(), "{name}");
        }
    }
}

/// The push service whose table the app has.
fn service(app: &Value) -> &str {
    let table = app.as_object().unwrap().iter().find(|(_, value)| value.is_object());
    table.unwrap().0
}

fn configure(settings: &mut Settings, around: &Around<'_>, app: &Value) {
    let id = app["id"].as_str().unwrap();
    let entry = match service(app) {
        "apns" => around.apns_app(id),
        "fcm" => around.fcm_app(id),
        "webpush" => around.webpush_app(id),
        "unifiedpush" => unifiedpush_app(id),
        other => panic!("{other} is no push service"),
    };
    let keys = [("content", app["content"].clone()), ("fcm.profile", app["fcm"]["profile"].clone())];
    let keys: Vec<_> = keys.into_iter().filter(|(_, value)| !value.is_null()).collect();
    settings.push("apps", &with(entry, &keys));
}

/// Puts the stand-ins' addresses into a device.
fn subscribe(device: &mut Value, kind: &str, gateway: &TestGateway, browser: &Subscriber) {
    match kind {
        "webpush" => {
            device["pushkey"] = json!(browser.p256dh());
            device["data"]["endpoint"] = json!(browser.endpoint());
            device["data"]["auth"] = json!(browser.auth());
        }
        "unifiedpush" => device["pushkey"] = json!(gateway.unifiedpush.endpoint("fixture")),
        _ => {}
    }
}

/// Pushes of all services.
fn count(gateway: &TestGateway) -> usize {
    gateway.apns.pushes().len()
        + gateway.fcm.pushes().len()
        + gateway.webpush.pushes().len()
        + gateway.unifiedpush.messages().len()
}

fn last(kind: &str, gateway: &TestGateway, browser: &Subscriber) -> Pushed {
    match kind {
        "apns" => {
            let body = gateway.apns.server.requests.all().last().unwrap().body.to_vec();
            let push = gateway.apns.pushes().all().pop().unwrap();
            assert_eq!(push.token, "aa".repeat(32));
            Pushed { body, payload: push.payload }
        }
        "fcm" => {
            let body = gateway.fcm.server.requests.all().last().unwrap().body.to_vec();
            let push = gateway.fcm.pushes().all().pop().unwrap();
            Pushed { body, payload: push.message }
        }
        "webpush" => {
            let push = gateway.webpush.pushes().all().pop().unwrap();
            let payload = browser.decrypt(&push.body).unwrap();
            Pushed { body: push.body, payload }
        }
        _ => {
            let message = gateway.unifiedpush.messages().all().pop().unwrap();
            let payload = message.json();
            Pushed { body: message.body, payload }
        }
    }
}

#[tokio::test]
async fn element_classic_on_ios() {
    check(include_str!("fixtures/element-classic-ios.json")).await;
}

#[tokio::test]
async fn element_classic_on_android() {
    check(include_str!("fixtures/element-classic-android.json")).await;
}

#[tokio::test]
async fn element_x_on_ios() {
    check(include_str!("fixtures/element-x-ios.json")).await;
}

#[tokio::test]
async fn element_x_on_android() {
    check(include_str!("fixtures/element-x-android.json")).await;
}

#[tokio::test]
async fn element_x_on_android_with_unifiedpush() {
    check(include_str!("fixtures/element-x-android-unifiedpush.json")).await;
}

#[tokio::test]
async fn fluffychat_on_android() {
    check(include_str!("fixtures/fluffychat-android.json")).await;
}

#[tokio::test]
async fn fluffychat_on_ios() {
    check(include_str!("fixtures/fluffychat-ios.json")).await;
}

#[tokio::test]
async fn hydrogen() {
    check(include_str!("fixtures/hydrogen.json")).await;
}

//! The push gateway's half: one event, three devices, and one that is gone.

use serde_json::{Value, json};
use waypost_tests::apns;
use waypost_tests::gateway::{ANDROID, IOS, NOTIFY, TestGateway, WEB, android, apns_token, event, ios};
use waypost_tests::webpush::Subscriber;

use crate::report::{Outcome, Report, done, ensure};

/// The Android device's registration token.
const ANDROID_TOKEN: &str = "fcm-token-of-the-demo";
/// The event that wakes the devices.
const EVENT_ID: &str = "$demo-event";

/// Runs the steps and leaves the gateway running. `None` if it did not start.
pub(crate) async fn walk(report: &mut Report) -> Option<TestGateway> {
    println!("\nPush gateway: a homeserver's notification reaches the devices.");
    let gateway = report.step("waypost-push-gateway starts between APNs, FCM and a push service", start()).await?;
    if steps(report, &gateway).await.is_none() {
        report.complaints("waypost-push-gateway", &gateway.server);
    }
    Some(gateway)
}

async fn steps(report: &mut Report, gateway: &TestGateway) -> Option<()> {
    let browser = gateway.webpush.subscribe("demo");
    report.step("An event for three devices", notify(gateway, &browser)).await?;
    report.step("What the iPhone sees (APNs)", iphone(gateway)).await?;
    report.step("What the Android phone sees (FCM)", android_phone(gateway)).await?;
    report.step("What the browser sees (WebPush)", browser_sees(gateway, &browser)).await?;
    report.step("The homeserver repeats the event", repeat(gateway, &browser)).await?;
    report.step("A dead pushkey comes back", dead(gateway)).await
}

async fn start() -> Outcome<TestGateway> {
    let gateway = TestGateway::start().await;
    let wire = vec![
        format!("public {}, operations {}", gateway.server.public, gateway.server.operations),
        format!("APNs at {} (HTTP/2), FCM at {}", gateway.apns.server.url(), gateway.fcm.server.url()),
        format!("push service at {}", gateway.webpush.origin()),
    ];
    done(gateway, "three apps are configured", wire)
}

fn the_event(browser: &Subscriber) -> Value {
    event(EVENT_ID, &[ios(&apns_token(0xa1)), android(ANDROID_TOKEN), browser.device(WEB)])
}

async fn notify(gateway: &TestGateway, browser: &Subscriber) -> Outcome<()> {
    let notification = the_event(browser);
    let rejected = gateway.rejected(&notification).await;
    ensure(rejected == json!([]), format!("rejected: {rejected}"))?;
    let wire = vec![
        format!("→ POST {NOTIFY} for {IOS}, {ANDROID}, {WEB}"),
        format!("  {}: {}", notification["type"], notification["content"]),
        "← 200 {\"rejected\":[]}".to_owned(),
    ];
    done((), "all three accepted it", wire)
}

async fn iphone(gateway: &TestGateway) -> Outcome<()> {
    let pushes = gateway.apns.pushes_for(&apns_token(0xa1));
    let [push] = pushes.as_slice() else { return Err(format!("{} pushes", pushes.len())) };
    ensure(push.payload["event_id"] == EVENT_ID, push.payload.to_string())?;
    let jwt = push.jwt.as_ref().ok_or("without a provider token")?;
    let wire = vec![
        format!(
            "HTTP/2 POST /3/device/{}…, apns-topic {}, apns-push-type {}, ES256 token of {}",
            &push.token[..8],
            push.header("apns-topic"),
            push.header("apns-push-type"),
            jwt.claims["iss"]
        ),
        push.payload.to_string(),
    ];
    done((), format!("payload of {} bytes, token verified", push.bytes), wire)
}

async fn android_phone(gateway: &TestGateway) -> Outcome<()> {
    let pushes = gateway.fcm.pushes_for(ANDROID_TOKEN);
    let [push] = pushes.as_slice() else { return Err(format!("{} pushes", pushes.len())) };
    let data = &push.message["data"];
    ensure(data["event_id"] == EVENT_ID, push.message.to_string())?;
    let priority = &push.message["android"]["priority"];
    let wire = vec![
        format!("POST /v1/projects/…/messages:send, bearer from an RS256 assertion, priority {priority}"),
        data.to_string(),
    ];
    done((), format!("{} data keys, assertion verified", data.as_object().map_or(0, serde_json::Map::len)), wire)
}

async fn browser_sees(gateway: &TestGateway, browser: &Subscriber) -> Outcome<()> {
    let pushes = gateway.webpush.pushes_for(browser);
    let [push] = pushes.as_slice() else { return Err(format!("{} pushes", pushes.len())) };
    let payload = browser.decrypt(&push.body)?;
    ensure(payload["event_id"] == EVENT_ID, payload.to_string())?;
    let wire = vec![
        format!(
            "POST {}, {} bytes of aes128gcm, TTL {}, VAPID from {}",
            push.path,
            push.body.len(),
            push.header("ttl"),
            push.vapid.claims["sub"]
        ),
        payload.to_string(),
    ];
    done((), "decrypted with the browser's key", wire)
}

async fn repeat(gateway: &TestGateway, browser: &Subscriber) -> Outcome<()> {
    let rejected = gateway.rejected(&the_event(browser)).await;
    ensure(rejected == json!([]), format!("rejected: {rejected}"))?;
    let (apple, google) = (gateway.apns.pushes().len(), gateway.fcm.pushes().len());
    let pushes = apple + google + gateway.webpush.pushes().len();
    ensure(pushes == 3, format!("{pushes} pushes went out in all, not 3"))?;
    let wire = vec!["→ the same request ← 200 {\"rejected\":[]}; nothing went out again".to_owned()];
    done((), "nobody was woken twice", wire)
}

async fn dead(gateway: &TestGateway) -> Outcome<()> {
    let gone = apns_token(0xd0);
    gateway.apns.script().always(&gone, apns::refusal(410, "Unregistered"));
    let notification = event("$demo-second-event", &[ios(&gone), android(ANDROID_TOKEN)]);
    let rejected = gateway.rejected(&notification).await;
    ensure(rejected == json!([gone]), format!("rejected: {rejected}"))?;
    let wire = vec![
        "→ a second event for an iPhone and the Android phone; APNs says 410 Unregistered".to_owned(),
        format!("← 200 {{\"rejected\":[\"{}…\"]}}: the homeserver forgets this one only", &gone[..8]),
    ];
    done((), "only the dead one was rejected", wire)
}

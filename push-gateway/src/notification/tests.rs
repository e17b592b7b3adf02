//! The leniency that deployed homeservers need (docs/compatibility.md, P5), and what is refused nevertheless.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use serde_json::json;

use super::*;

/// Parses a notification; also used by the payload tests.
pub(crate) fn notification(value: Value) -> Notification {
    parse(json!({"notification": value})).unwrap()
}

fn parse(body: Value) -> Result<Notification, InvalidNotification> {
    let Value::Object(body) = body else { panic!("a body is an object") };
    Notification::parse(body, RequestSource::UNKNOWN, &NotifyConfig::default())
}

fn refused(notification: Value) -> String {
    parse(json!({"notification": notification})).unwrap_err().to_string()
}

#[test]
fn synapses_badge_update_is_counts_only() {
    let parsed = notification(json!({
        "id": "", "type": null, "sender": "", "counts": {"unread": 0},
        "devices": [{"app_id": "a", "pushkey": "k", "pushkey_ts": 1_700_000_000, "data": null}],
    }));
    assert_eq!(parsed.counts, Counts { unread: Some(0), missed_calls: None });
    assert_eq!(parsed.counts.badge(), Some(0));
    assert_eq!(parsed.kind(Content::Full, &parsed.devices[0]), Kind::CountsOnly);
    assert_eq!(parsed.devices[0].pushkey_ts_ms, Some(1_700_000_000_999));
}

#[test]
fn a_pushkey_ts_in_seconds_means_the_end_of_that_second() {
    for (told, expected) in [
        (json!(1_700_000_000), 1_700_000_000_999),
        // Milliseconds are exact.
        (json!(1_700_000_000_123_i64), 1_700_000_000_123),
    ] {
        let parsed = notification(json!({"devices": [{"app_id": "a", "pushkey": "k", "pushkey_ts": told}]}));
        assert_eq!(parsed.devices[0].pushkey_ts_ms, Some(expected));
    }
}

#[test]
fn what_is_too_large_for_an_event_is_not_kept() {
    let many = vec![1; 5000];
    let device = json!({"app_id": "a", "pushkey": "k"});
    let parsed = notification(json!({"event_id": "$1", "type": "m.a", "content": {"a": many}, "devices": [device]}));
    assert_eq!((parsed.content(), parsed.text("event_id")), (None, Some("$1")));
    // Fields that nobody knows, beside those that somebody does.
    let parsed = notification(json!({"event_id": "$1", "other": many, "content": {"a": 1}, "devices": [device]}));
    assert_eq!(serde_json::to_value(parsed.as_it_came()).unwrap(), json!({"event_id": "$1"}));
    let device = |data: Value| json!({"app_id": "a", "pushkey": "k", "data": data});
    let devices = [device(json!({"default_payload": {"a": many}})), device(json!({"a": "x".repeat(60_000)}))];
    let parsed = notification(json!({"devices": devices}));
    assert_eq!(
        parsed.devices[0].fault.as_ref().unwrap().to_string(),
        "`notification.devices[0].data` must be at most 65536 bytes and 4096 values"
    );
    assert!(parsed.devices[0].data.is_empty() && parsed.devices[1].fault.is_none());
}

#[test]
fn an_overlong_app_id_or_pushkey_is_that_devices_fault() {
    let fault = |app_id: usize, pushkey: usize| {
        let device = json!({"app_id": "a".repeat(app_id), "pushkey": "k".repeat(pushkey)});
        let parsed = notification(json!({"devices": [device]}));
        parsed.devices[0].fault.as_ref().map(ToString::to_string)
    };
    assert_eq!(fault(255, 2048), None);
    let expected = "`notification.devices[0].app_id` must be at most 255 bytes";
    assert_eq!(fault(256, 2048).as_deref(), Some(expected));
    let expected = "`notification.devices[0].pushkey` must be at most 2048 bytes";
    assert_eq!(fault(255, 2049).as_deref(), Some(expected));
}

#[test]
fn absent_and_null_fields_are_the_same() {
    for extra in [json!({}), json!({"counts": null, "prio": null, "content": null, "room_name": null, "new": [1]})] {
        let mut value = json!({"event_id": "$e", "room_id": "!r", "devices": [{"app_id": "a", "pushkey": "k"}]});
        value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let parsed = notification(value);
        assert_eq!((parsed.counts.badge(), parsed.prio), (None, Priority::High));
        assert_eq!(parsed.kind(Content::Full, &parsed.devices[0]), Kind::IdsOnly);
        assert_eq!(parsed.devices[0].pushkey_ts_ms, None);
    }
}

#[test]
fn an_unknown_priority_is_high() {
    for (prio, expected) in [("low", Priority::Low), ("high", Priority::High), ("urgent", Priority::High)] {
        let parsed = notification(json!({"prio": prio, "devices": [{"app_id": "a", "pushkey": "k"}]}));
        assert_eq!(parsed.prio, expected);
    }
}

#[test]
fn content_is_relayed_only_if_both_the_app_and_the_pusher_want_it() {
    let full = |data: Value| {
        notification(json!({
            "event_id": "$e", "type": "m.room.message", "devices": [{"app_id": "a", "pushkey": "k", "data": data}],
        }))
    };
    let plain = full(json!({}));
    assert_eq!(plain.kind(Content::Full, &plain.devices[0]), Kind::Full);
    assert_eq!(plain.kind(Content::IdsOnly, &plain.devices[0]), Kind::IdsOnly);
    let ids = full(json!({"format": "event_id_only"}));
    assert_eq!(ids.kind(Content::Full, &ids.devices[0]), Kind::IdsOnly);
}

#[test]
fn numbers_reach_to_2_to_the_53() {
    let unread = |value: Value| {
        parse(json!({"notification": {"counts": {"unread": value}, "devices": [{"app_id": "a", "pushkey": "k"}]}}))
            .map(|parsed| parsed.counts.unread)
    };
    assert_eq!(unread(json!(9_007_199_254_740_992_i64)), Ok(Some(9_007_199_254_740_992)));
    assert_eq!(unread(json!(2.0)), Ok(Some(2)));
    for wrong in [json!(9_007_199_254_740_993_i64), json!(u64::MAX), json!(1e30), json!(1.5), json!("1"), json!([])] {
        let error = unread(wrong).unwrap_err().to_string();
        assert_eq!(error, "`notification.counts.unread` must be an integer");
    }
}

#[test]
fn an_error_names_the_field_but_not_its_value() {
    let device = json!({"app_id": "a", "pushkey": "k"});
    for (value, expected) in [
        (json!(5), "`notification` must be an object"),
        (json!(null), "Missing parameters: notification"),
        (json!({}), "Missing parameters: notification.devices"),
        (json!({"devices": {}}), "`notification.devices` must be a list of devices"),
        (json!({"devices": [device, 5]}), "`notification.devices[1]` must be an object"),
        (json!({"devices": [{"app_id": "a"}]}), "Missing parameters: notification.devices[0].pushkey"),
        (
            json!({"devices": [{"app_id": "a", "pushkey": {"secret": 1}}]}),
            "`notification.devices[0].pushkey` must be a string",
        ),
        (json!({"devices": [{"app_id": "a", "pushkey": ""}]}), "`notification.devices[0].pushkey` must not be empty"),
        (
            json!({"devices": [{"app_id": "a", "pushkey": "k", "pushkey_ts": "now"}]}),
            "`notification.devices[0].pushkey_ts` must be an integer",
        ),
        (
            json!({"devices": [{"app_id": "a", "pushkey": "k", "tweaks": 1}]}),
            "`notification.devices[0].tweaks` must be an object",
        ),
        (json!({"devices": [device], "event_id": 5}), "`notification.event_id` must be a string"),
        (json!({"devices": [device], "content": "x"}), "`notification.content` must be an object"),
        (json!({"devices": [device], "counts": [1]}), "`notification.counts` must be an object"),
    ] {
        assert_eq!(refused(value), expected);
    }
    let many: Vec<_> = (0..101).map(|_| device.clone()).collect();
    assert_eq!(refused(json!({"devices": many})), "`notification.devices` may name at most 100 devices");
}

#[test]
fn invalid_pusher_data_affects_only_its_device() {
    let parsed = notification(json!({"devices": [
        {"app_id": "a", "pushkey": "1", "data": {"default_payload": []}},
        {"app_id": "a", "pushkey": "2", "data": "x"},
        {"app_id": "a", "pushkey": "3", "data": {"default_payload": {}}},
    ]}));
    let faults: Vec<_> = parsed.devices.iter().map(|device| device.fault.as_ref().map(ToString::to_string)).collect();
    assert_eq!(
        faults,
        [
            Some("`notification.devices[0].data.default_payload` must be an object".to_owned()),
            Some("`notification.devices[1].data` must be an object".to_owned()),
            None,
        ]
    );
}

#[test]
fn an_encrypted_notification_is_not_counts_only() {
    let parsed = notification(json!({
        "ciphertext": "c", "ephemeral": "e", "mac": "m", "devices": [{"app_id": "a", "pushkey": "k"}],
    }));
    assert_eq!(parsed.kind(Content::IdsOnly, &parsed.devices[0]), Kind::IdsOnly);
    let parts: Vec<_> = parsed.encrypted_parts().map(|(key, _)| key).collect();
    assert_eq!(parts, ["ciphertext", "ephemeral", "mac"]);
    let parsed = notification(json!({
        "event_id": "$e", "ciphertext": null, "ephemeral": null, "mac": null,
        "devices": [{"app_id": "a", "pushkey": "k"}],
    }));
    assert_eq!(parsed.encrypted_parts().count(), 0);
}

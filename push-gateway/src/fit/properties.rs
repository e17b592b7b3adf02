//! Properties that hold for arbitrary texts.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::arbitrary::Random;

/// Bytes between the quotes as serde_json writes them.
fn written(text: &str) -> usize {
    Value::from(text).to_string().len() - 2
}

#[test]
fn a_cut_keeps_the_longest_prefix_that_fits() {
    let mut random = Random(1);
    for _ in 0..5000 {
        let text = random.text(60);
        let max = random.below(120);
        assert_eq!(json_len(&text), written(&text), "{text:?}");
        for mark in ["", "…"] {
            let mut cut_text = text.clone();
            cut(&mut cut_text, max, mark);
            assert!(written(&cut_text) <= max, "{text:?} {max} {mark}");
            if written(&text) <= max {
                assert_eq!(cut_text, text, "a text that fits is unchanged");
                continue;
            }
            if max < written(mark) {
                assert_eq!(cut_text, "");
                continue;
            }
            let kept = cut_text.strip_suffix(mark).unwrap();
            assert!(text.starts_with(kept), "{text:?} {cut_text:?}");
            // One more character would not have fit.
            let next = text[kept.len()..].chars().next().unwrap();
            assert!(written(&cut_text) + written(&next.to_string()) > max, "{text:?} {max} {cut_text:?}");
        }
    }
}

#[test]
fn shrinking_takes_enough_and_from_the_longest() {
    let mut random = Random(2);
    for _ in 0..2000 {
        let count = 1 + random.below(8);
        let before: Vec<String> = (0..count).map(|_| random.text(80)).collect();
        let total: usize = before.iter().map(|text| written(text)).sum();
        let excess = 1 + random.below(total.max(1));
        let mut after = before.clone();
        let shrunk = shrink(after.iter_mut().collect(), excess, "");
        assert_eq!(shrunk, excess <= total, "{before:?} {excess}");
        if !shrunk {
            assert_eq!(after, before);
            continue;
        }
        let left: usize = after.iter().map(|text| written(text)).sum();
        assert!(left + excess <= total, "{before:?} {excess} {after:?}");
        let longest = after.iter().map(|text| written(text)).max().unwrap();
        for (before, after) in before.iter().zip(&after) {
            assert!(before.starts_with(after.as_str()), "{before:?} {after:?}");
            // A text that was cut is as long as the longest, give or take a character.
            assert!(before == after || written(after) + 6 > longest.min(written(before)), "{before:?} {after:?}");
        }
    }
}

#[test]
fn a_notification_fits_and_keeps_its_ids_and_ciphertext() {
    let mut random = Random(3);
    for round in 0..500 {
        let id = format!("${round}:{}", "x".repeat(random.below(40)));
        let is_sealed = random.below(3) == 0;
        let mut content = Map::new();
        content.insert("body".to_owned(), random.text(3000).into());
        if is_sealed {
            content.insert("ciphertext".to_owned(), "c".repeat(random.below(6000)).into());
        }
        let mut payload = Map::new();
        payload.insert("event_id".to_owned(), id.as_str().into());
        payload.insert("unread".to_owned(), 7.into());
        payload.insert("room_name".to_owned(), random.text(300).into());
        payload.insert("content".to_owned(), Value::Object(content.clone()));
        let body = notification(payload.clone(), 4096).unwrap();
        assert!(body.len() <= 4096);
        let read: Map<String, Value> = serde_json::from_str(&body).unwrap();
        assert_eq!((read["event_id"].as_str(), read["unread"].as_i64()), (Some(id.as_str()), Some(7)));
        if let Some(kept) = read.get("content") {
            assert_eq!(kept.get("ciphertext"), content.get("ciphertext"), "the ciphertext is never cut");
            let (kept, whole) = (kept["body"].as_str().unwrap(), content["body"].as_str().unwrap());
            assert!(whole.starts_with(kept));
        }
        if Value::Object(payload.clone()).to_string().len() <= 4096 {
            assert_eq!(read, payload, "a payload that fits is unchanged");
        }
    }
}

#[test]
fn overlong_ids_make_no_notification() {
    let payload = Map::from_iter([("event_id".to_owned(), Value::from("x".repeat(5000)))]);
    assert_eq!(notification(payload, 4096), None);
}

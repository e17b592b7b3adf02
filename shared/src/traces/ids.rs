//! The names of traces and spans, and how a caller's come with a request.
//!
//! Source: W3C Trace Context, "traceparent Header".

use std::fmt;

use http::{HeaderMap, HeaderName};
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::random;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A flag of `traceparent`: the caller may have recorded its part of the trace.
const SAMPLED: u128 = 1;

/// Which trace. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl EncodeLabelValue for TraceId {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        fmt::Write::write_fmt(encoder, format_args!("{self}"))
    }
}

impl TraceId {
    /// A new one.
    pub(crate) fn random() -> Self {
        // 0 is no trace.
        Self(u128::from_le_bytes(random::bytes()).max(1))
    }

    /// Whether this is one of the traces, `ratio` of all, that are recorded. Replicas agree about each.
    pub(super) fn is_within(self, ratio: f64) -> bool {
        // The last 56 bits are random (W3C Trace Context Level 2, "random-trace-id flag"); an f64 holds 53 of them.
        let drawn = u64::try_from((self.0 & 0x00ff_ffff_ffff_ffff) >> 3).unwrap_or_default();
        (drawn as f64) < ratio * (1_u64 << 53) as f64
    }
}

/// Which span of a trace. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanId(u64);

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SpanId {
    /// A new one.
    pub(super) fn random() -> Self {
        // 0 is no span.
        Self(u64::from_le_bytes(random::bytes()).max(1))
    }
}

/// The caller's span, below which ours belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) is_sampled: bool,
}

impl Parent {
    /// The one that a request's headers name; none if they name none, several, or what is no span.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.to_str().ok()?),
            _ => None,
        }
    }

    /// `00-TRACE-SPAN-FLAGS`; a later version may have more behind it.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '-');
        let mut next = |digits| hexadecimal(parts.next()?, digits);
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        if version == 0xff || (version == 0 && parts.next().is_some()) || trace == 0 || span == 0 {
            return None;
        }
        let (trace, span) = (TraceId(trace), SpanId(u64::try_from(span).ok()?));
        Some(Self { trace, span, is_sampled: flags & SAMPLED != 0 })
    }
}

/// A number of exactly so many digits, in lower case as the specification demands.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    // The example of the specification.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_callers_span_is_read() {
        let parent = Parent::parse(EXAMPLE).unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span.to_string(), "00f067aa0ba902b7");
        assert!(parent.is_sampled);
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let text = format!("{}{flags}", EXAMPLE.strip_suffix("01").unwrap());
            assert_eq!(Parent::parse(&text).unwrap().is_sampled, is_sampled, "{flags}");
        }
        // A later version may have more.
        let later = EXAMPLE.replacen("00", "01", 1);
        assert!(Parent::parse(&later).is_some());
        assert!(Parent::parse(&format!("{later}-more-of-it")).is_some());
    }

    #[test]
    fn what_is_no_span_is_none() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(Parent::parse(text), None, "{text}");
        }
        let twice = [EXAMPLE, EXAMPLE].map(|value| (TRACEPARENT, HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in twice {
            headers.append(name, value);
        }
        assert_eq!(Parent::of(&headers), None);
    }

    #[test]
    fn the_ratio_says_how_many_traces_are_recorded() {
        for (last_bits, ratio, expected) in [
            (0x00ff_ffff_ffff_ffff, 1.0, true),
            (0, 0.0, false),
            (0x007f_ffff_ffff_ffff, 0.5, true),
            (0x0080_0000_0000_0000, 0.5, false),
        ] {
            // What stands before the last 56 bits does not matter.
            for before in [0, u128::MAX << 56] {
                assert_eq!(TraceId(before | last_bits).is_within(ratio), expected, "{last_bits:x} {ratio}");
            }
        }
    }
}

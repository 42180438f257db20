//! The trace that a command belongs to: W3C Trace Context and a correlation id, as `CloudEvents` attributes carry them. What came in with
//! a command goes out with everything that the command causes.
//!
//! A context never decides anything. What is invalid in it is ignored, and never an error.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, DeserializeSeed, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};

/// The form of `traceparent`, for schemas.
pub const TRACEPARENT_PATTERN: &str = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$";
/// The longest correlation id, in characters.
pub const CORRELATION_ID_CHARS_MAX: usize = 256;

/// The length of a `traceparent` of version 00, in bytes.
const TRACEPARENT_BYTES: usize = 55;
/// How many entries a `tracestate` has at most. One with more is ignored.
const TRACESTATE_ENTRIES_MAX: usize = 32;
/// The longest `tracestate` that is passed on, in bytes. Of a longer one, entries are dropped.
const TRACESTATE_BYTES_MAX: usize = 512;
/// An entry of more bytes is dropped first.
const TRACESTATE_LONG_ENTRY_BYTES: usize = 128;
/// The flags of a `traceparent` that have a meaning: sampled, and random trace id.
const KNOWN_FLAGS: u8 = 0b11;

/// The trace that a command belongs to. Each part is optional; invalid ones are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub struct TraceContext {
    /// The trace, and the span in it that caused this (W3C Trace Context).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = TRACEPARENT_PATTERN))]
    traceparent: Option<String>,
    /// What tracing systems add to it (W3C Trace Context).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = TRACESTATE_BYTES_MAX))]
    tracestate: Option<String>,
    /// The business process that this is a part of (CloudEvents' Correlation extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = CORRELATION_ID_CHARS_MAX))]
    correlationid: Option<String>,
}

impl TraceContext {
    /// The names of the parts, as attributes and as headers.
    pub const NAMES: [&str; 3] = ["traceparent", "tracestate", "correlationid"];

    /// The context of these parts, without those that are invalid. A `tracestate` means nothing without its `traceparent`.
    #[must_use]
    pub fn new(traceparent: Option<&str>, tracestate: Option<&str>, correlationid: Option<&str>) -> Self {
        let traceparent = traceparent.and_then(parse_traceparent);
        let tracestate = tracestate.filter(|_| traceparent.is_some()).and_then(parse_tracestate);
        Self { traceparent, tracestate, correlationid: correlationid.filter(is_correlation_id).map(str::to_owned) }
    }

    /// The context in the envelope of a message, which may be anything. An attribute that appears twice is ignored.
    #[must_use]
    pub fn of_envelope(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// The context of a message that has this one in its headers and `inner` in its envelope.
    #[must_use]
    pub fn over(self, inner: Self) -> Self {
        let (traceparent, tracestate) = match self.traceparent {
            Some(traceparent) => (Some(traceparent), self.tracestate),
            None => (inner.traceparent, inner.tracestate),
        };
        Self { traceparent, tracestate, correlationid: self.correlationid.or(inner.correlationid) }
    }

    /// The same correlation in another span of the same trace, or of another trace.
    #[must_use]
    pub fn in_span(&self, traceparent: &str, tracestate: &str) -> Self {
        Self::new(Some(traceparent), Some(tracestate), self.correlationid())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.traceparent.is_none() && self.correlationid.is_none()
    }

    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    #[must_use]
    pub fn correlationid(&self) -> Option<&str> {
        self.correlationid.as_deref()
    }

    /// The id of the trace: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent()?.get(3..35)
    }

    /// The parts that are there, with their names.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let values = [self.traceparent(), self.tracestate(), self.correlationid()];
        Self::NAMES.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)))
    }
}

/// The `traceparent` as version 00 writes it.
fn parse_traceparent(text: &str) -> Option<String> {
    let known = text.get(..TRACEPARENT_BYTES)?;
    let [version, trace_id, parent_id, flags] = known.split('-').collect::<Vec<_>>().try_into().ok()?;
    let is_id = |id: &str, digits| id.len() == digits && is_hexadecimal(id) && id.bytes().any(|digit| digit != b'0');
    let is_valid = version.len() == 2
        && is_hexadecimal(version)
        && version != "ff"
        && is_id(trace_id, 32)
        && is_id(parent_id, 16)
        && is_hexadecimal(flags);
    if !is_valid {
        return None;
    }
    match (version, &text[TRACEPARENT_BYTES..]) {
        ("00", "") => Some(text.to_owned()),
        ("00", _) => None,
        // Later versions may append fields. Of theirs, only the fields and flags of version 00 are passed on.
        (_, rest) if rest.is_empty() || rest.starts_with('-') => {
            let flags = u8::from_str_radix(flags, 16).ok()? & KNOWN_FLAGS;
            Some(format!("00-{trace_id}-{parent_id}-{flags:02x}"))
        }
        _ => None,
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The `tracestate` without empty entries, shortened by the rules of the recommendation.
fn parse_tracestate(text: &str) -> Option<String> {
    let entries = text.split(',').map(|entry| entry.trim_matches([' ', '\t'])).filter(|entry| !entry.is_empty());
    let mut entries: Vec<&str> = entries.take(TRACESTATE_ENTRIES_MAX + 1).collect();
    let mut keys = BTreeSet::new();
    let mut is_valid = |entry: Option<(_, _)>| {
        entry.is_some_and(|(key, value)| is_tracestate_key(key) && is_tracestate_value(value) && keys.insert(key))
    };
    if entries.len() > TRACESTATE_ENTRIES_MAX || !entries.iter().all(|entry| is_valid(entry.split_once('='))) {
        return None;
    }
    let bytes = |entries: &[&str]| entries.iter().map(|entry| entry.len() + 1).sum::<usize>().saturating_sub(1);
    while bytes(&entries) > TRACESTATE_BYTES_MAX {
        // The newest entries come first.
        let long = entries.iter().rposition(|entry| entry.len() > TRACESTATE_LONG_ENTRY_BYTES);
        entries.remove(long.unwrap_or(entries.len() - 1));
    }
    Some(entries.join(",")).filter(|text| !text.is_empty())
}

fn is_tracestate_key(key: &str) -> bool {
    let has_form = |text: &str, bytes_max, may_begin_with_digit| {
        let first = text.bytes().next();
        let begins = first.is_some_and(|it| it.is_ascii_lowercase() || may_begin_with_digit && it.is_ascii_digit());
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        begins && text.len() <= bytes_max && text.bytes().all(allowed)
    };
    match key.split_once('@') {
        Some((tenant, system)) => has_form(tenant, 241, true) && has_form(system, 14, false),
        None => has_form(key, 256, true),
    }
}

fn is_tracestate_value(value: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(allowed)
}

fn is_correlation_id(text: &&str) -> bool {
    (1..=CORRELATION_ID_CHARS_MAX).contains(&text.chars().count()) && !text.contains(char::is_control)
}

/// From anything: what is missing, twice there, or not a text of the right form is ignored, like everything else in it.
impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Loose::Parts(parts) = Anything::WithParts.deserialize(deserializer)? else { return Ok(Self::default()) };
        let [traceparent, tracestate, correlationid] = parts.each_ref().map(Option::as_deref);
        Ok(Self::new(traceparent, tracestate, correlationid))
    }
}

/// What there is to find in a value.
enum Loose {
    Text(String),
    /// The texts in an object, in the order of [`TraceContext::NAMES`].
    Parts([Option<String>; 3]),
    Other,
}

/// Accepts every value, and looks into objects or not.
#[derive(Clone, Copy)]
enum Anything {
    WithParts,
    WithoutParts,
}

impl<'de> DeserializeSeed<'de> for Anything {
    type Value = Loose;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Loose, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Anything {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<Loose, E> {
        Ok(Loose::Text(text.to_owned()))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
        let mut parts = [None, None, None];
        let mut seen = [false; 3];
        while let Some(key) = map.next_key::<Cow<str>>()? {
            let place = TraceContext::NAMES.iter().position(|name| matches!(self, Self::WithParts) && *name == key);
            let Some(place) = place else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value_seed(Self::WithoutParts)?;
            parts[place] = match value {
                Loose::Text(text) if !seen[place] => Some(text),
                _ => None,
            };
            seen[place] = true;
        }
        Ok(Loose::Parts(parts))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut values: A) -> Result<Loose, A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Loose::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_unit<E>(self) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_none<E>(self) -> Result<Loose, E> {
        Ok(Loose::Other)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Loose, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Loose, D::Error> {
        self.deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn traceparent_of_version_00_is_kept_as_it_is() {
        #[track_caller]
        fn check(text: &str, is_valid: bool) {
            let context = TraceContext::new(Some(text), None, None);
            assert_eq!(context.traceparent(), is_valid.then_some(text), "{text}");
        }
        check(PARENT, true);
        check(&PARENT.replace("-01", "-00"), true);
        check(&PARENT.replace("-01", "-ff"), true);
        check("", false);
        check(&PARENT[..54], false);
        check(&format!("{PARENT}-"), false);
        check(&format!("{PARENT} "), false);
        check(&format!(" {PARENT}"), false);
        check(&PARENT.to_uppercase(), false);
        check(&PARENT.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"), false);
        check(&PARENT.replace("b7ad6b7169203331", "0000000000000000"), false);
        check(&PARENT.replace("b7ad", "b7ag"), false);
        check(&PARENT.replace("-01", "-0x"), false);
        check(&PARENT.replace("-b7", "0b7"), false);
        check(&PARENT.replacen("00-", "0-0", 1), false);
        check(&"é".repeat(40), false);
    }

    /// The recommendation: read what version 00 has, and write version 00.
    #[test]
    fn later_versions_become_version_00() {
        #[track_caller]
        fn check(version: &str, rest: &str, expected: Option<&str>) {
            let text = format!("{version}-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{rest}");
            let expected = expected.map(|flags| PARENT.replace("-01", flags));
            assert_eq!(TraceContext::new(Some(&text), None, None).traceparent(), expected.as_deref(), "{text}");
        }
        check("01", "01", Some("-01"));
        check("cc", "01-what-comes-later", Some("-01"));
        check("fe", "ff", Some("-03"));
        check("cc", "01.what", None);
        check("ff", "01", None);
        check("00", "01-what", None);
    }

    #[test]
    fn tracestate_is_checked_and_shortened() {
        #[track_caller]
        fn check(text: &str, expected: Option<&str>) {
            let context = TraceContext::new(Some(PARENT), Some(text), None);
            assert_eq!(context.tracestate(), expected, "{text}");
        }
        check("rojo=00f067aa0cc902c7,congo=t61rcWkgMzE", Some("rojo=00f067aa0cc902c7,congo=t61rcWkgMzE"));
        check("a=1 ,\t b=2,, ", Some("a=1,b=2"));
        check("fw529a3039@dt=FfAAAA~, 0_-*/=x y", Some("fw529a3039@dt=FfAAAA~,0_-*/=x y"));
        check("", None);
        check(" , ", None);
        for invalid in
            ["a", "=1", "A=1", "a=", "a=1=2", "a=é", "a=1,a=2", "a@=1", "@a=1", "a@0=1", "a@b@c=1", "a b=1", "a=1\n"]
        {
            check(invalid, None);
        }
        check(&format!("{}=1", "k".repeat(257)), None);
        check(&format!("a={}", "v".repeat(257)), None);
        let entries = |count| (0..count).map(|index| format!("k{index}=v")).collect::<Vec<_>>().join(",");
        check(&entries(32), Some(&entries(32)));
        check(&entries(33), None);
        // Entries of more than 128 bytes go first, then the oldest.
        let long = format!("long={}", "v".repeat(200));
        let short: Vec<_> = (0..6).map(|index| format!("k{index}={}", "v".repeat(90))).collect();
        check(&format!("{long},{}", short.join(",")), Some(&short[..5].join(",")));
        // It belongs to its traceparent.
        assert!(TraceContext::new(Some("invalid"), Some("a=1"), None).is_empty());
    }

    #[test]
    fn correlation_ids_are_bounded_texts() {
        #[track_caller]
        fn check(text: &str, is_valid: bool) {
            assert_eq!(TraceContext::new(None, None, Some(text)).correlationid(), is_valid.then_some(text));
        }
        check("order 42", true);
        check(&"é".repeat(256), true);
        check(&"é".repeat(257), false);
        check("", false);
        check("a\nb", false);
    }

    #[test]
    fn headers_take_precedence_over_the_envelope() {
        let other = PARENT.replace("b7ad", "aaaa");
        let envelope = TraceContext::new(Some(PARENT), Some("a=1"), Some("envelope"));
        let check = |header: TraceContext, expected: TraceContext| assert_eq!(header.over(envelope.clone()), expected);
        check(TraceContext::default(), envelope.clone());
        check(
            TraceContext::new(None, Some("b=2"), Some("header")),
            TraceContext::new(Some(PARENT), Some("a=1"), Some("header")),
        );
        // A state is never combined with the parent of another trace.
        check(TraceContext::new(Some(&other), None, None), TraceContext::new(Some(&other), None, Some("envelope")));
    }

    #[test]
    fn what_is_invalid_in_an_envelope_is_ignored() {
        #[track_caller]
        fn check(envelope: &str, expected: &TraceContext) {
            assert_eq!(&TraceContext::of_envelope(envelope.as_bytes()), expected, "{envelope}");
        }
        let all = TraceContext::new(Some(PARENT), Some("a=1"), Some("c"));
        let good = json!({ "id": "1", "traceparent": PARENT, "data": { "x": [1] }, "tracestate": "a=1", "correlationid": "c" });
        check(&good.to_string(), &all);
        check(&good.to_string().replace("traceparent", "tr\\u0061ceparent"), &all);
        assert_eq!(serde_json::from_value::<TraceContext>(serde_json::to_value(&all).unwrap()).unwrap(), all);

        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let nested = json!({ "traceparent": PARENT }).to_string();
        for wrong in ["null", "7", "-7", "1.5", "true", "[]", "{}", &nested, &deep, "\"\"", "\"x\\ny\""] {
            let envelope = format!("{{\"correlationid\":{wrong},\"traceparent\":\"{PARENT}\"}}");
            check(&envelope, &TraceContext::new(Some(PARENT), None, None));
        }
        let twice = format!("{{\"correlationid\":\"a\",\"traceparent\":\"{PARENT}\",\"correlationid\":\"b\"}}");
        check(&twice, &TraceContext::new(Some(PARENT), None, None));
        let thrice = r#"{"correlationid":"a","correlationid":"b","correlationid":"c"}"#;
        for nothing in ["", "{", "7", "\"text\"", "[]", &deep, thrice] {
            check(nothing, &TraceContext::default());
        }
    }

    #[test]
    fn the_trace_id_is_32_digits() {
        let context = TraceContext::new(Some(PARENT), None, None);
        assert_eq!(context.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(TraceContext::new(None, None, Some("c")).trace_id(), None);
        let child = context.in_span(&PARENT.replace("b7ad", "aaaa"), "");
        assert_eq!(child.parts().collect::<Vec<_>>(), [("traceparent", PARENT.replace("b7ad", "aaaa").as_str())]);
    }
}

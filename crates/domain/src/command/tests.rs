//! What is a command and what is not, whatever its type. Each error is a sentence that names the field.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::*;

/// One command of every type and variant, in full.
fn every_command() -> Vec<Value> {
    vec![
        envelope(
            "subscription.cancellation",
            json!({ "actor": admin(), "via": "purchases", "month": "2026-06", "reason": "é", "message": "à bientôt" }),
        ),
        envelope(
            "subscription.cancellation",
            json!({ "actor": admin(), "via": "invoice", "invoice_id": "inv-1", "refund": true }),
        ),
        envelope("subscription.cancellation", json!({ "actor": client(), "via": "account" })),
        envelope("subscription.cancellation-request", json!({ "actor": client(), "reason": "\u{1f600} \\ \" \n" })),
        envelope(
            "subscription.cancellation-confirmation",
            json!({ "actor": admin(), "decision": "accept", "final_billing_date": "2026-05-15", "note": "" }),
        ),
        envelope("subscription.cancellation-confirmation", json!({ "actor": admin(), "decision": "decline" })),
        envelope("payment.failure", payment_data()),
        envelope("payment.failure", {
            let mut data = payment_data();
            data["failure_code"] = "expired_card".into();
            data["payment_url"] = "https://pay.example/i/1?a=é".into();
            data
        }),
        envelope("card.expiry", card_data()),
    ]
}

mod accepted {
    use super::*;

    #[test]
    fn other_attributes_are_ignored() {
        let mut message = envelope("card.expiry", card_data());
        message["time"] = "2026-06-15T10:00:00.123-04:00".into();
        for (name, value) in [
            ("subject", json!("sub-1")),
            ("datacontenttype", json!("application/json")),
            ("dataschema", json!(null)),
            ("traceparent", json!({ "any": ["thing", 1.5e300] })),
        ] {
            message[name] = value;
        }
        let command = parse_message(&message).unwrap();
        assert_eq!(command.reference.kind, CommandType::CardExpiry);
        assert_eq!((command.reference.key.source.as_str(), command.reference.key.id.as_str()), ("tests", "cmd-1"));
        assert_eq!(command.time, instant("2026-06-15T14:00:00.123Z"));
        assert_eq!(command.organization_id().as_str(), "org-1");
    }

    /// The database keeps no more, so a time does not change when it is read back.
    #[test]
    fn times_are_cut_to_milliseconds() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let mut message = envelope("card.expiry", card_data());
            message["time"] = text.into();
            assert_eq!(parse_message(&message).unwrap().time, instant(expected));
        }
        check("2026-06-15T10:00:00Z", "2026-06-15T10:00:00Z");
        check("2026-06-15T10:00:00.123456789Z", "2026-06-15T10:00:00.123Z");
        check("2026-06-15T10:00:00.9999+00:00", "2026-06-15T10:00:00.999Z");
        check("2026-06-30T23:59:60Z", "2026-07-01T00:00:00Z"); // a leap second
        check("2026-06-15t10:00:00z", "2026-06-15T10:00:00Z");
    }

    /// Many languages write an absent field as null.
    #[test]
    fn optional_fields_may_be_null() {
        let nothing = Value::Null;
        let mut purchases = json!({ "actor": admin(), "via": "purchases", "month": nothing, "reason": nothing });
        purchases["actor"]["name"] = Value::Null;
        purchases["refund"] = Value::Null;
        purchases["message"] = Value::Null;
        let SubscriptionCommand::Cancellation(data) = read_data("subscription.cancellation", purchases) else {
            panic!()
        };
        assert_eq!(data.via, CancellationVia::Purchases { month: None, message: None });
        read_data(
            "subscription.cancellation-confirmation",
            json!({ "actor": admin(), "decision": "accept", "final_billing_date": nothing }),
        );
        let mut failure = payment_data();
        for optional in ["next_attempt_on", "failure_message", "failure_code", "payment_url"] {
            failure[optional] = Value::Null;
        }
        read_data("payment.failure", failure);
    }

    /// Unicode scalar values, not bytes.
    #[test]
    fn lengths_are_counted_in_characters() {
        let long = |length| "é".repeat(length);
        let mut message = envelope(
            "subscription.cancellation",
            json!({ "actor": { "role": "client", "account_id": long(128), "name": "x".repeat(1000) },
                "via": "account", "reason": "\u{1f600}".repeat(2_000) }),
        );
        message["id"] = long(128).into();
        message["source"] = long(256).into();
        message["data"]["subscription_id"] = long(128).into();
        message["data"]["organization_id"] = long(128).into();
        parse_message(&message).unwrap();
    }

    #[test]
    fn escapes_are_read_in_text_and_keys() {
        let text = envelope("subscription.cancellation-request", json!({ "actor": client() })).to_string();
        let escaped = text.replace("sub-1", "s\\u0075b-1").replace("\"actor\"", "\"\\u0061ctor\"");
        assert!(escaped.len() > text.len());
        assert_eq!(Command::parse(escaped.as_bytes()), Command::parse(text.as_bytes()));
    }

    #[test]
    fn a_command_has_at_most_256_kibibytes() {
        let mut bytes = envelope("card.expiry", card_data()).to_string().into_bytes();
        bytes.resize(COMMAND_BYTES_MAX, b' ');
        assert!(Command::parse(&bytes).is_ok());
        bytes.push(b' ');
        let error = Command::parse(&bytes).unwrap_err();
        assert_eq!(error, InvalidCommand::TooLarge { bytes: COMMAND_BYTES_MAX + 1 });
        assert_eq!(error.to_string(), "the message has 262145 bytes; a command has at most 262144");
    }
}

mod invalid {
    use super::*;

    #[test]
    fn errors_of_json_have_a_position() {
        let good = envelope("card.expiry", card_data()).to_string();
        check_invalid_bytes(b"", "not JSON: EOF while parsing a value at line 1 column 0");
        check_invalid_bytes(b"   ", "not JSON: EOF while parsing a value at line 1 column 3");
        check_invalid_bytes(b"hello", "not JSON: expected value at line 1 column 1");
        check_invalid_bytes(b"{", "not JSON: EOF while parsing an object at line 1 column 1");
        check_invalid_bytes(
            &good.as_bytes()[..good.len() - 1],
            "not JSON: EOF while parsing an object at line 1 column 230",
        );
        check_invalid_bytes(format!("{good} x").as_bytes(), "not JSON: trailing characters at line 1 column 233");
        check_invalid_bytes(format!("{good}{good}").as_bytes(), "not JSON: trailing characters at line 1 column 232");
        check_invalid_bytes(
            format!("\u{feff}{good}").as_bytes(),
            "the body begins with a byte order mark: send UTF-8 without one",
        );
        check_invalid_bytes(b"\x1f\x8b\x08\x00", "the body is compressed (gzip): send plain JSON");
        check_invalid_bytes(
            good.replace("Visa", "Vi\nsa").as_bytes(),
            "not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 190",
        );
        check_invalid_bytes(
            good.replace("Visa", "\\ud800").as_bytes(),
            "data.card.brand: not JSON: unexpected end of hex escape",
        );
        check_invalid_bytes(
            &good.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
            "not JSON: key must be a string at line 1 column 2",
        );
    }

    /// Also in an attribute that is ignored.
    #[test]
    fn bytes_that_are_not_utf_8_are_found_everywhere() {
        // U+0001 stands for a byte that is not UTF-8.
        #[track_caller]
        fn check(marked: &str, expected: &str) {
            let bytes: Vec<u8> = marked.bytes().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
            check_invalid_bytes(&bytes, expected);
        }
        let good = envelope("card.expiry", card_data()).to_string();
        check(&good.replace("Visa", "\u{1}"), "not JSON: invalid utf-8 sequence of 1 bytes from index 188");
        check(
            &good.replace("\"data\"", "\"comment\":\"\u{1}\",\"data\""),
            "not JSON: invalid utf-8 sequence of 1 bytes from index 113",
        );
    }

    #[test]
    fn invalid_attributes_are_named() {
        let good = || envelope("card.expiry", card_data());
        check_invalid_bytes(b"[]", "invalid type: sequence, expected an object");
        check_invalid_bytes(b"null", "invalid type: null, expected an object");
        check_invalid_bytes(b"\"text\"", r#"invalid type: string "text", expected an object"#);
        check_invalid_bytes(b"{}", "missing field `specversion`");
        check_invalid(good(), "/specversion", absent(), "missing field `specversion`");
        check_invalid(good(), "/specversion", json!("0.3"), "specversion: unknown variant `0.3`, expected `1.0`");
        check_invalid(
            good(),
            "/specversion",
            json!(1.0),
            "specversion: invalid type: floating point `1.0`, expected a string",
        );
        check_invalid(good(), "/id", absent(), "missing field `id`");
        check_invalid(good(), "/id", json!(""), "id: must be 1 to 128 characters long, is 0");
        check_invalid(good(), "/id", json!("é".repeat(129)), "id: must be 1 to 128 characters long, is 129");
        check_invalid(good(), "/id", json!(7), "id: invalid type: integer `7`, expected a string");
        check_invalid(good(), "/id", json!(null), "id: invalid type: null, expected a string");
        check_invalid(good(), "/source", json!("x".repeat(257)), "source: must be 1 to 256 characters long, is 257");
        check_invalid(good(), "/type", absent(), "missing field `type`");
        check_invalid(
            good(),
            "/type",
            json!("subscription.cancelation"),
            "type: unknown variant `subscription.cancelation`, expected one of `subscription.cancellation`, `subscription.cancellation-request`, `subscription.cancellation-confirmation`, `payment.failure`, `card.expiry`",
        );
        check_invalid(good(), "/time", absent(), "missing field `time`");
        check_invalid(
            good(),
            "/time",
            json!("2026-06-15"),
            r#"time: not a time of RFC 3339 such as "2026-06-15T10:00:00Z""#,
        );
        check_invalid(
            good(),
            "/time",
            json!("2026-06-15T10:00:00"),
            r#"time: it lacks a time zone: end it with `Z` or an offset, such as "2026-06-15T10:00:00Z""#,
        );
        check_invalid(
            good(),
            "/time",
            json!(1_781_517_600),
            "time: invalid type: integer `1781517600`, expected a string",
        );
        check_invalid(
            good(),
            "/time",
            json!("0001-01-01T00:00:00Z"),
            "time: the year 0001 is outside 2000 to 2998; is it a date that was never set?",
        );
        for time in
            ["1999-12-31T23:59:59Z", "2000-01-01T00:00:00+01:00", "2999-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"]
        {
            let year = if time.starts_with("2000") { "1999" } else { &time[..4] };
            let year = if time.ends_with("-01:00") { "10000" } else { year };
            let error = format!("time: the year {year} is outside 2000 to 2998; is it a date that was never set?");
            check_invalid(good(), "/time", json!(time), &error);
        }
        check_invalid(good(), "/data", absent(), "missing field `data`");
        check_invalid(good(), "/data", json!(null), "data: invalid type: null, expected an object");
        check_invalid(good(), "/data", json!("{}"), r#"data: invalid type: string "{}", expected an object"#);
        check_invalid(good(), "/data", json!({}), "data: missing field `organization_id`");
    }

    /// Serde by itself would accept both.
    #[test]
    fn arrays_are_not_objects_and_objects_are_not_names() {
        check_invalid_bytes(
            br#"["1.0", "cmd-1", "tests", "card.expiry", "2026-06-15T10:00:00Z", {}]"#,
            "invalid type: sequence, expected an object",
        );
        let with = |message: Value, expected: &str| check_invalid_bytes(message.to_string().as_bytes(), expected);
        let mut message = envelope("card.expiry", card_data());
        message["data"] =
            json!(["org-1", "acc-1", { "id": "c", "brand": "Visa", "last4": "4242", "expires": "2026-06" }]);
        with(message, "data: invalid type: sequence, expected an object");
        let good = || envelope("subscription.cancellation", json!({ "actor": admin(), "via": "purchases" }));
        check_invalid(
            good(),
            "/specversion",
            json!({ "1.0": null }),
            "specversion: invalid type: map, expected a string",
        );
        check_invalid(good(), "/type", json!({ "card.expiry": null }), "type: invalid type: map, expected a string");
        check_invalid(
            good(),
            "/data/actor",
            json!(["admin", "adm-1", null, null]),
            "data.actor: invalid type: sequence, expected an object",
        );
        check_invalid(
            good(),
            "/data/actor/role",
            json!({ "admin": null }),
            "data.actor.role: invalid type: map, expected a string",
        );
        check_invalid(
            good(),
            "/data/via",
            json!({ "purchases": null }),
            "data.via: invalid type: map, expected a string",
        );
        check_invalid(
            envelope("subscription.cancellation-request", json!({ "actor": client() })),
            "/data/actor",
            json!(["client", null, "acc-1", null]),
            "data.actor: invalid type: sequence, expected an object",
        );
        let good =
            || envelope("subscription.cancellation-confirmation", json!({ "actor": admin(), "decision": "accept" }));
        check_invalid(
            good(),
            "/data/actor",
            json!(["admin", "adm-1", null, null]),
            "data.actor: invalid type: sequence, expected an object",
        );
        check_invalid(
            good(),
            "/data/decision",
            json!({ "accept": null }),
            "data.decision: invalid type: map, expected a string",
        );
        check_invalid(
            envelope("payment.failure", payment_data()),
            "/data/amount",
            json!(["49.99", "CAD"]),
            "data.amount: invalid type: sequence, expected an object",
        );
        check_invalid(
            envelope("payment.failure", payment_data()),
            "/data/card",
            json!(["Visa", "4242"]),
            "data.card: invalid type: sequence, expected an object",
        );
        check_invalid(
            envelope("card.expiry", card_data()),
            "/data/card",
            json!(["card-1", "Visa", "4242", "2026-06"]),
            "data.card: invalid type: sequence, expected an object",
        );
    }

    #[test]
    fn duplicate_keys_are_invalid() {
        let good = envelope("subscription.cancellation", json!({ "actor": admin(), "via": "purchases" })).to_string();
        check_invalid_bytes(
            good.replace("\"id\":\"cmd-1\"", "\"id\":\"cmd-1\",\"id\":\"cmd-2\"").as_bytes(),
            "duplicate field `id`",
        );
        check_invalid_bytes(
            good.replace("\"via\":", "\"via\":\"account\",\"via\":").as_bytes(),
            "data: duplicate field `via`",
        );
        check_invalid_bytes(
            good.replace("\"role\":", "\"role\":\"client\",\"role\":").as_bytes(),
            "data.actor: duplicate field `role`",
        );
    }

    /// As deep as 256 KiB allow, in attributes that are read and in those that are not.
    #[test]
    fn deep_nesting_is_harmless() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let good = envelope("card.expiry", card_data()).to_string();
        check_invalid_bytes(deep.as_bytes(), "invalid type: sequence, expected an object");
        check_invalid_bytes(
            good.replace("\"Visa\"", &deep).as_bytes(),
            "data.card.brand: invalid type: sequence, expected a string",
        );
        let ignored = good.replace("\"data\":", &format!("\"comment\":{deep},\"data\":"));
        assert!(Command::parse(ignored.as_bytes()).is_ok(), "it is ignored");
    }

    /// The sentence travels in a header and is printed on terminals.
    #[test]
    fn errors_are_bounded_and_printable() {
        let good = || envelope("subscription.cancellation", json!({ "actor": admin(), "via": "purchases" }));
        let long = "\u{1b}[31mé".repeat(20_000);
        for (path, name) in [("/type", "type"), ("/data/month", "data"), ("/data/via", "data"), ("/id", "id")] {
            let mut message = good();
            *message
                .pointer_mut(path.rsplit_once('/').unwrap().0)
                .unwrap()
                .as_object_mut()
                .unwrap()
                .entry(name)
                .or_insert(Value::Null) = long.clone().into();
            let error = parse_message(&message).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
            assert!(error.chars().count() <= 301 && !error.contains('\u{1b}'), "{error}");
        }
        let mut message = good();
        message["data"][&long] = 1.into();
        let error = parse_message(&message).unwrap_err().to_string();
        assert!(error.starts_with("data.") && error.chars().count() <= 301 && !error.contains('\u{1b}'), "{error}");
    }
}

proptest! {
    #[test]
    fn random_bytes_are_invalid(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Command::parse(&bytes).is_err());
    }

    /// A valid command, damaged in a few places.
    #[test]
    fn damaged_commands_are_read_or_invalid(which in 0..8_usize, damage in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6)) {
        let mut bytes = every_command().swap_remove(which).to_string().into_bytes();
        for (at, how, byte) in damage {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => { bytes.remove(at); }
                _ => bytes[at] = *b"{}[]\",:0".get(usize::from(byte % 8)).unwrap(),
            }
        }
        match Command::parse(&bytes) {
            Ok(_) => {}
            Err(error) => prop_assert!(error.to_string().chars().count() <= 301),
        }
    }

}

#[test]
fn every_command_is_read_and_named_as_on_the_wire() {
    for message in every_command() {
        let command = parse_message(&message).unwrap();
        assert_eq!(message["type"], command.reference.kind.as_str());
        assert!(CommandType::ALL.contains(&command.reference.kind));
        // The audit trail names it the same way.
        let reference = json!({ "source": "tests", "id": "cmd-1", "type": message["type"] });
        assert_eq!(serde_json::to_value(&command.reference).unwrap(), reference);
        assert_eq!(serde_json::from_value::<CommandRef>(reference).unwrap(), command.reference);
    }
}

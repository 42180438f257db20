//! What is a command and what is not; each error is a sentence that names the field.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{admin, client, date, envelope, instant, month};

const CANCELLATION: &str = "subscription.cancellation";
const REQUEST: &str = "subscription.cancellation-request";
const CONFIRMATION: &str = "subscription.cancellation-confirmation";

fn parse(message: &Value) -> Result<Command, InvalidCommand> {
    Command::parse(message.to_string().as_bytes())
}

#[track_caller]
fn read(kind: &str, data: Value) -> SubscriptionCommand {
    match parse(&envelope(kind, data)).unwrap().body {
        CommandBody::Subscription(command) => command,
        CommandBody::CardExpiry(other) => panic!("{other:?}"),
    }
}

fn payment() -> Value {
    json!({
        "invoice_id": "inv-1", "amount": { "value": "49.99", "currency": "CAD" },
        "card": { "brand": "Visa", "last4": "4242" }, "attempt": 1,
    })
}

fn card() -> Value {
    json!({ "card": { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2026-06" } })
}

/// One command of every type and variant, in full.
fn every_command() -> Vec<Value> {
    vec![
        envelope(CANCELLATION, json!({ "actor": admin(), "via": "purchases", "month": "2026-06", "reason": "é" })),
        envelope(CANCELLATION, json!({ "actor": admin(), "via": "invoice", "invoice_id": "inv-1", "refund": true })),
        envelope(CANCELLATION, json!({ "actor": client(), "via": "account" })),
        envelope(REQUEST, json!({ "actor": client(), "reason": "\u{1f600} \\ \" \n" })),
        envelope(
            CONFIRMATION,
            json!({ "actor": admin(), "decision": "accept", "final_billing_date": "2026-05-15", "note": "" }),
        ),
        envelope(CONFIRMATION, json!({ "actor": admin(), "decision": "decline" })),
        envelope("payment.failure", payment()),
        envelope("card.expiry", card()),
    ]
}

mod accepted {
    use super::*;

    #[test]
    fn the_envelope() {
        let mut message = envelope("card.expiry", card());
        message["time"] = "2026-06-15T10:00:00.123-04:00".into();
        for (name, value) in [
            ("subject", json!("sub-1")),
            ("datacontenttype", json!("application/json")),
            ("dataschema", json!(null)),
            ("traceparent", json!({ "any": ["thing", 1.5e300] })),
        ] {
            message[name] = value;
        }
        let command = parse(&message).unwrap();
        assert_eq!(command.reference.kind, CommandType::CardExpiry);
        assert_eq!((command.reference.key.source.as_str(), command.reference.key.id.as_str()), ("tests", "cmd-1"));
        assert_eq!(command.time, instant("2026-06-15T14:00:00.123Z"));
        assert_eq!(command.organization_id().as_str(), "org-1");
    }

    /// As precise as the database keeps them, so that a fact does not change when it is read back.
    #[test]
    fn times_are_of_milliseconds() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let mut message = envelope("card.expiry", card());
            message["time"] = text.into();
            assert_eq!(parse(&message).unwrap().time, instant(expected));
        }
        check("2026-06-15T10:00:00Z", "2026-06-15T10:00:00Z");
        check("2026-06-15T10:00:00.123456789Z", "2026-06-15T10:00:00.123Z");
        check("2026-06-15T10:00:00.9999+00:00", "2026-06-15T10:00:00.999Z");
        check("2026-06-30T23:59:60Z", "2026-07-01T00:00:00Z"); // a leap second
        check("2026-06-15t10:00:00z", "2026-06-15T10:00:00Z");
    }

    #[test]
    fn cancellation() {
        use SubscriptionCommand::Cancellation;
        let actor = Actor::Admin { id: "adm-1".try_into().unwrap(), name: Some("Luc".try_into().unwrap()) };
        let Cancellation(data) = read(CANCELLATION, json!({ "actor": admin(), "via": "purchases" })) else { panic!() };
        assert_eq!((data.organization_id.as_str(), data.subscription_id.as_str()), ("org-1", "sub-1"));
        assert_eq!((data.actor, data.reason), (actor, None));
        assert_eq!(data.via, CancellationVia::Purchases { month: None });

        let full = json!({ "actor": admin(), "via": "purchases", "month": "2026-06", "reason": "déménage" });
        let Cancellation(data) = read(CANCELLATION, full) else { panic!() };
        assert_eq!(data.via, CancellationVia::Purchases { month: Some(month("2026-06")) });
        assert_eq!(data.reason.unwrap().as_str(), "déménage");

        let minimal = json!({ "actor": admin(), "via": "invoice", "invoice_id": "inv-1" });
        let Cancellation(data) = read(CANCELLATION, minimal) else { panic!() };
        let invoice_id: InvoiceId = "inv-1".try_into().unwrap();
        assert_eq!(data.via, CancellationVia::Invoice { invoice_id: invoice_id.clone(), refund: false });

        let full = json!({ "actor": admin(), "via": "invoice", "invoice_id": "inv-1", "refund": true, "reason": "" });
        let Cancellation(data) = read(CANCELLATION, full) else { panic!() };
        assert_eq!(data.via, CancellationVia::Invoice { invoice_id, refund: true });

        let full = json!({ "actor": client(), "via": "account", "reason": "trop loin" });
        let Cancellation(data) = read(CANCELLATION, full) else { panic!() };
        assert_eq!(data.via, CancellationVia::Account);
        assert_eq!(data.actor, Actor::Client { account_id: "acc-1".try_into().unwrap(), name: None });
    }

    #[test]
    fn cancellation_request() {
        use SubscriptionCommand::CancellationRequest;
        let CancellationRequest(data) = read(REQUEST, json!({ "actor": client() })) else { panic!() };
        assert_eq!(data.reason, None);
        let CancellationRequest(data) = read(REQUEST, json!({ "actor": client(), "reason": "loin" })) else { panic!() };
        assert_eq!(data.reason.unwrap().as_str(), "loin");
    }

    #[test]
    fn cancellation_confirmation() {
        #[track_caller]
        fn check(data: Value, decision: ConfirmationDecision, note: Option<&str>) {
            let SubscriptionCommand::CancellationConfirmation(data) = read(CONFIRMATION, data) else { panic!() };
            assert_eq!((data.decision, data.note.as_ref().map(Text::as_str)), (decision, note));
        }
        let no_date = ConfirmationDecision::Accept { final_billing_date: None };
        let with_date = ConfirmationDecision::Accept { final_billing_date: Some(date("2026-05-15")) };
        let (accept, full) = (json!("accept"), json!("2026-05-15"));
        check(json!({ "actor": admin(), "decision": accept }), no_date, None);
        check(
            json!({ "actor": admin(), "decision": accept, "final_billing_date": full, "note": "ok" }),
            with_date,
            Some("ok"),
        );
        check(json!({ "actor": admin(), "decision": "decline" }), ConfirmationDecision::Decline, None);
        check(
            json!({ "actor": admin(), "decision": "decline", "note": "non" }),
            ConfirmationDecision::Decline,
            Some("non"),
        );
    }

    #[test]
    fn payment_failure() {
        use SubscriptionCommand::PaymentFailure;
        let PaymentFailure(data) = read("payment.failure", payment()) else { panic!() };
        assert_eq!((data.amount.value.as_str(), data.amount.currency.as_str()), ("49.99", "CAD"));
        assert_eq!((data.card.brand.as_str(), data.card.last4.as_str()), ("Visa", "4242"));
        assert_eq!((data.attempt.get(), data.failure_message, data.next_attempt_on), (1, None, None));
        let mut full = payment();
        full["attempt"] = 4_294_967_295_u32.into();
        full["failure_message"] = "Insufficient funds".into();
        full["next_attempt_on"] = "2026-06-18".into();
        let PaymentFailure(data) = read("payment.failure", full) else { panic!() };
        assert_eq!(data.next_attempt_on, Some(date("2026-06-18")));
        let mut talkative = payment();
        talkative["failure_message"] = "é".repeat(2_001).into();
        let PaymentFailure(data) = read("payment.failure", talkative) else { panic!() };
        assert_eq!(data.failure_message.unwrap().as_str(), "é".repeat(2_000), "cut, not refused");
        for value in ["0", "0.5", "49", "49.9", "49.9999", "999999999999.9999"] {
            let mut data = payment();
            data["amount"]["value"] = value.into();
            read("payment.failure", data);
        }
    }

    #[test]
    fn card_expiry() {
        let CommandBody::CardExpiry(data) = parse(&envelope("card.expiry", card())).unwrap().body else { panic!() };
        assert_eq!((data.account_id.as_str(), data.card.id.as_str()), ("acc-1", "card-1"));
        assert_eq!(data.card.expires, month("2026-06"));
    }

    /// A field that may be absent may be null: that is how many languages write absence.
    #[test]
    fn null_for_what_is_optional() {
        let nothing = Value::Null;
        let mut purchases = json!({ "actor": admin(), "via": "purchases", "month": nothing, "reason": nothing });
        purchases["actor"]["name"] = Value::Null;
        purchases["refund"] = Value::Null;
        let SubscriptionCommand::Cancellation(data) = read(CANCELLATION, purchases) else { panic!() };
        assert_eq!(data.via, CancellationVia::Purchases { month: None });
        read(CONFIRMATION, json!({ "actor": admin(), "decision": "accept", "final_billing_date": nothing }));
        let mut failure = payment();
        failure["next_attempt_on"] = Value::Null;
        read("payment.failure", failure);
    }

    /// Lengths are counted in characters as people count them, not in bytes.
    #[test]
    fn the_longest() {
        let long = |length| "é".repeat(length);
        let mut message = envelope(
            CANCELLATION,
            json!({ "actor": { "role": "client", "account_id": long(128), "name": "x".repeat(1000) },
                "via": "account", "reason": "\u{1f600}".repeat(2_000) }),
        );
        message["id"] = long(128).into();
        message["source"] = long(256).into();
        message["data"]["subscription_id"] = long(128).into();
        message["data"]["organization_id"] = long(128).into();
        parse(&message).unwrap();
    }

    #[test]
    fn escaped_text_and_keys() {
        let text = envelope(REQUEST, json!({ "actor": client() })).to_string();
        let escaped = text.replace("sub-1", "s\\u0075b-1").replace("\"actor\"", "\"\\u0061ctor\"");
        assert!(escaped.len() > text.len());
        assert_eq!(Command::parse(escaped.as_bytes()), Command::parse(text.as_bytes()));
    }

    #[test]
    fn the_largest() {
        let mut bytes = envelope("card.expiry", card()).to_string().into_bytes();
        bytes.resize(COMMAND_BYTES_MAX, b' ');
        assert!(Command::parse(&bytes).is_ok());
        bytes.push(b' ');
        let error = Command::parse(&bytes).unwrap_err();
        assert_eq!(error, InvalidCommand::TooLarge { bytes: COMMAND_BYTES_MAX + 1 });
        assert_eq!(error.to_string(), "the message has 262145 bytes; a command has at most 262144");
    }
}

mod refused {
    use super::*;

    #[track_caller]
    fn check_bytes(bytes: &[u8], expected: &str) {
        match Command::parse(bytes) {
            Ok(command) => panic!("accepted: {command:?}"),
            Err(error) => assert_eq!(error.to_string(), expected),
        }
    }

    /// Changes one field of a good command, by its path; [`absent`] removes it.
    #[track_caller]
    fn check(mut message: Value, path: &str, value: Value, expected: &str) {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let parent = message.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value == json!("<absent>") {
            parent.shift_remove(name).unwrap();
        } else {
            parent.insert(name.into(), value);
        }
        check_bytes(message.to_string().as_bytes(), expected);
    }

    fn absent() -> Value {
        json!("<absent>")
    }

    #[test]
    fn not_json() {
        let good = envelope("card.expiry", card()).to_string();
        check_bytes(b"", "not JSON: EOF while parsing a value at line 1 column 0");
        check_bytes(b"   ", "not JSON: EOF while parsing a value at line 1 column 3");
        check_bytes(b"hello", "not JSON: expected value at line 1 column 1");
        check_bytes(b"{", "not JSON: EOF while parsing an object at line 1 column 1");
        check_bytes(&good.as_bytes()[..good.len() - 1], "not JSON: EOF while parsing an object at line 1 column 230");
        check_bytes(format!("{good} x").as_bytes(), "not JSON: trailing characters at line 1 column 233");
        check_bytes(format!("{good}{good}").as_bytes(), "not JSON: trailing characters at line 1 column 232");
        check_bytes(format!("\u{feff}{good}").as_bytes(), "not JSON: expected value at line 1 column 1");
        check_bytes(
            good.replace("Visa", "Vi\nsa").as_bytes(),
            "not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 190",
        );
        check_bytes(
            good.replace("Visa", "\\ud800").as_bytes(),
            "data.card.brand: not JSON: unexpected end of hex escape",
        );
        check_bytes(
            &good.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
            "not JSON: key must be a string at line 1 column 2",
        );
    }

    /// Wherever it stands: also in an attribute that nobody reads.
    #[test]
    fn not_utf_8() {
        // The mark stands for a byte that is no text.
        #[track_caller]
        fn check(marked: &str, expected: &str) {
            let bytes: Vec<u8> = marked.bytes().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
            check_bytes(&bytes, expected);
        }
        let good = envelope("card.expiry", card()).to_string();
        check(&good.replace("Visa", "\u{1}"), "not JSON: invalid utf-8 sequence of 1 bytes from index 188");
        check(
            &good.replace("\"data\"", "\"comment\":\"\u{1}\",\"data\""),
            "not JSON: invalid utf-8 sequence of 1 bytes from index 113",
        );
    }

    #[test]
    fn not_the_envelope() {
        let good = || envelope("card.expiry", card());
        check_bytes(b"[]", "invalid type: sequence, expected an object");
        check_bytes(b"null", "invalid type: null, expected an object");
        check_bytes(b"\"text\"", r#"invalid type: string "text", expected an object"#);
        check_bytes(b"{}", "missing field `specversion`");
        check(good(), "/specversion", absent(), "missing field `specversion`");
        check(good(), "/specversion", json!("0.3"), "specversion: unknown variant `0.3`, expected `1.0`");
        check(good(), "/specversion", json!(1.0), "specversion: invalid type: floating point `1.0`, expected a string");
        check(good(), "/id", absent(), "missing field `id`");
        check(good(), "/id", json!(""), "id: must be 1 to 128 characters long, is 0");
        check(good(), "/id", json!("é".repeat(129)), "id: must be 1 to 128 characters long, is 129");
        check(good(), "/id", json!(7), "id: invalid type: integer `7`, expected a string");
        check(good(), "/id", json!(null), "id: invalid type: null, expected a string");
        check(good(), "/source", json!("x".repeat(257)), "source: must be 1 to 256 characters long, is 257");
        check(good(), "/type", absent(), "missing field `type`");
        check(
            good(),
            "/type",
            json!("subscription.cancelation"),
            "type: unknown variant `subscription.cancelation`, expected one of `subscription.cancellation`, `subscription.cancellation-request`, `subscription.cancellation-confirmation`, `payment.failure`, `card.expiry`",
        );
        check(good(), "/time", absent(), "missing field `time`");
        check(good(), "/time", json!("2026-06-15"), r#"time: not a time of RFC 3339 such as "2026-06-15T10:00:00Z""#);
        check(
            good(),
            "/time",
            json!("2026-06-15T10:00:00"),
            r#"time: not a time of RFC 3339 such as "2026-06-15T10:00:00Z""#,
        );
        check(good(), "/time", json!(1_781_517_600), "time: invalid type: integer `1781517600`, expected a string");
        check(
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
            check(good(), "/time", json!(time), &error);
        }
        check(good(), "/data", absent(), "missing field `data`");
        check(good(), "/data", json!(null), "data: invalid type: null, expected an object");
        check(good(), "/data", json!("{}"), r#"data: invalid type: string "{}", expected an object"#);
        check(good(), "/data", json!({}), "data: missing field `organization_id`");
    }

    #[test]
    fn a_field_of_data() {
        let good = || envelope(CANCELLATION, json!({ "actor": admin(), "via": "purchases", "month": "2026-06" }));
        check(good(), "/data/organization_id", absent(), "data: missing field `organization_id`");
        check(
            good(),
            "/data/organization_id",
            json!(null),
            "data.organization_id: invalid type: null, expected a string",
        );
        check(
            good(),
            "/data/subscription_id",
            json!(12),
            "data.subscription_id: invalid type: integer `12`, expected a string",
        );
        check(
            good(),
            "/data/subscription_id",
            json!("x".repeat(129)),
            "data.subscription_id: must be 1 to 128 characters long, is 129",
        );
        check(good(), "/data/actor", absent(), "data: missing field `actor`");
        check(good(), "/data/actor", json!("Luc"), r#"data.actor: invalid type: string "Luc", expected an object"#);
        check(good(), "/data/via", absent(), "data: missing field `via`");
        check(
            good(),
            "/data/via",
            json!("Purchases"),
            "data.via: unknown variant `Purchases`, expected one of `purchases`, `invoice`, `account`",
        );
        check(
            good(),
            "/data/monht",
            json!("2026-06"),
            "data.monht: unknown field `monht`, expected one of `organization_id`, `subscription_id`, `actor`, `via`, `reason`, `month`, `invoice_id`, `refund`",
        );
        check(good(), "/data/month", json!("2026-6"), r#"data.month: `2026-6` is not a month such as "2026-06""#);
        check(good(), "/data/month", json!("2026-13"), r#"data.month: `2026-13` is not a month such as "2026-06""#);
        check(
            good(),
            "/data/month",
            json!("2999-12"),
            "data.month: the year 2999 is outside 2000 to 2998; is it a date that was never set?",
        );
        check(
            good(),
            "/data/month",
            json!("2026-06-15"),
            r#"data.month: `2026-06-15` is not a month such as "2026-06""#,
        );
        check(good(), "/data/month", json!(6), "data.month: invalid type: integer `6`, expected a string");
        check(
            good(),
            "/data/reason",
            json!("é".repeat(2_001)),
            "data.reason: must be 0 to 2000 characters long, is 2001",
        );
        check(good(), "/data/reason", json!(["a"]), "data.reason: invalid type: sequence, expected a string");
    }

    #[test]
    fn an_actor() {
        #[track_caller]
        fn with(actor: Value, expected: &str) {
            check(
                envelope(CANCELLATION, json!({ "actor": admin(), "via": "purchases" })),
                "/data/actor",
                actor,
                expected,
            );
        }
        with(json!({}), "data.actor: missing field `role`");
        with(
            json!({ "role": "owner", "id": "1" }),
            "data.actor.role: unknown variant `owner`, expected `admin` or `client`",
        );
        with(json!({ "role": "admin" }), "data.actor: missing field `id` (an admin has an `id`)");
        with(json!({ "role": "admin", "id": "" }), "data.actor.id: must be 1 to 128 characters long, is 0");
        with(
            json!({ "role": "admin", "id": "1", "account_id": "2" }),
            "data.actor: unknown field `account_id` (an admin has an `id` and a `name`)",
        );
        with(
            json!({ "role": "client", "id": "1" }),
            "data.actor: missing field `account_id` (a client has an `account_id`)",
        );
        with(
            json!({ "role": "client", "id": "1", "account_id": "2" }),
            "data.actor: unknown field `id` (a client has an `account_id` and a `name`)",
        );
        with(
            json!({ "role": "admin", "id": "1", "email": "luc@example.org" }),
            "data.actor.email: unknown field `email`, expected one of `role`, `id`, `account_id`, `name`",
        );
        with(
            json!({ "role": "admin", "id": "1", "name": "x".repeat(1001) }),
            "data.actor.name: must be 0 to 1000 characters long, is 1001",
        );
    }

    #[test]
    fn a_field_that_goes_with_another_via() {
        #[track_caller]
        fn with(data: Value, expected: &str) {
            check_bytes(envelope(CANCELLATION, data).to_string().as_bytes(), expected);
        }
        with(
            json!({ "actor": client(), "via": "account", "month": "2026-06" }),
            r#"data: unknown field `month` (it goes with `via: "purchases"` only)"#,
        );
        with(
            json!({ "actor": admin(), "via": "invoice", "invoice_id": "i", "month": "2026-06" }),
            r#"data: unknown field `month` (it goes with `via: "purchases"` only)"#,
        );
        with(
            json!({ "actor": admin(), "via": "purchases", "invoice_id": "i" }),
            r#"data: unknown field `invoice_id` (it goes with `via: "invoice"` only)"#,
        );
        with(
            json!({ "actor": admin(), "via": "purchases", "refund": false }),
            r#"data: unknown field `refund` (it goes with `via: "invoice"` only)"#,
        );
        with(
            json!({ "actor": client(), "via": "account", "invoice_id": "i" }),
            r#"data: unknown field `invoice_id` (it goes with `via: "invoice"` only)"#,
        );
        with(
            json!({ "actor": admin(), "via": "invoice" }),
            r#"data: missing field `invoice_id` (`via: "invoice"` needs it)"#,
        );
        with(
            json!({ "actor": admin(), "via": "invoice", "invoice_id": "i", "refund": "yes" }),
            r#"data.refund: invalid type: string "yes", expected a boolean"#,
        );
    }

    #[test]
    fn a_confirmation() {
        let good = || envelope(CONFIRMATION, json!({ "actor": admin(), "decision": "decline" }));
        check(
            good(),
            "/data/final_billing_date",
            json!("2026-05-15"),
            r#"data: unknown field `final_billing_date` (it goes with `decision: "accept"` only)"#,
        );
        check(
            good(),
            "/data/decision",
            json!("yes"),
            "data.decision: unknown variant `yes`, expected `accept` or `decline`",
        );
        check(good(), "/data/decision", absent(), "data: missing field `decision`");
        check(
            good(),
            "/data/reason",
            json!("no"),
            "data.reason: unknown field `reason`, expected one of `organization_id`, `subscription_id`, `actor`, `decision`, `final_billing_date`, `note`",
        );
        let good = || envelope(CONFIRMATION, json!({ "actor": admin(), "decision": "accept" }));
        check(
            good(),
            "/data/final_billing_date",
            json!("2026-6-1"),
            r#"data.final_billing_date: `2026-6-1` is not a date such as "2026-06-15""#,
        );
        check(
            good(),
            "/data/final_billing_date",
            json!("2026-02-30"),
            r#"data.final_billing_date: `2026-02-30` is not a date such as "2026-06-15""#,
        );
        check(
            good(),
            "/data/final_billing_date",
            json!("1899-12-31"),
            "data.final_billing_date: the year 1899 is outside 2000 to 2998; is it a date that was never set?",
        );
        check(
            good(),
            "/data/final_billing_date",
            json!("2026-05-15T00:00:00Z"),
            r#"data.final_billing_date: `2026-05-15T00:00:00Z` is not a date such as "2026-06-15""#,
        );
        check(
            good(),
            "/data/final_billing_date",
            json!(20_260_515),
            "data.final_billing_date: invalid type: integer `20260515`, expected a string",
        );
        check(good(), "/data/note", json!("x".repeat(2_001)), "data.note: must be 0 to 2000 characters long, is 2001");
    }

    #[test]
    fn a_payment() {
        let good = || envelope("payment.failure", payment());
        check(good(), "/data/attempt", json!(0), "data.attempt: attempts are counted from 1");
        check(good(), "/data/attempt", json!(-1), "data.attempt: invalid value: integer `-1`, expected u32");
        check(good(), "/data/attempt", json!(1.5), "data.attempt: invalid type: floating point `1.5`, expected u32");
        check(good(), "/data/attempt", json!("1"), r#"data.attempt: invalid type: string "1", expected u32"#);
        check(
            good(),
            "/data/attempt",
            json!(4_294_967_296_u64),
            "data.attempt: invalid value: integer `4294967296`, expected u32",
        );
        check(
            good(),
            "/data/amount",
            json!("49.99"),
            r#"data.amount: invalid type: string "49.99", expected an object"#,
        );
        check(
            good(),
            "/data/amount/value",
            json!(49.99),
            "data.amount.value: invalid type: floating point `49.99`, expected a string",
        );
        for value in ["", ".", "49.", ".99", "-1", "+1", "1e3", "49,99", "1 000", "1234567890123", "1.00000", "٤٩"] {
            check(
                good(),
                "/data/amount/value",
                json!(value),
                r#"data.amount.value: must look like "49.99" (^[0-9]{1,12}([.][0-9]{1,4})?$)"#,
            );
        }
        for currency in ["", "cad", "CA", "CADX", "CA$", "ÇAD"] {
            check(
                good(),
                "/data/amount/currency",
                json!(currency),
                r#"data.amount.currency: must look like "CAD" (^[A-Z]{3}$)"#,
            );
        }
        check(good(), "/data/card/last4", json!("424"), r#"data.card.last4: must look like "4242" (^[0-9]{4}$)"#);
        check(good(), "/data/card/last4", json!("٤٢٤٢"), r#"data.card.last4: must look like "4242" (^[0-9]{4}$)"#);
        check(
            good(),
            "/data/card/last4",
            json!(4242),
            "data.card.last4: invalid type: integer `4242`, expected a string",
        );
        check(good(), "/data/card/brand", json!(""), "data.card.brand: must be 1 to 256 characters long, is 0");
        check(
            good(),
            "/data/card/expires",
            json!("2026-06"),
            "data.card.expires: unknown field `expires`, expected `brand` or `last4`",
        );
        check(
            good(),
            "/data/next_attempt_on",
            json!("tomorrow"),
            r#"data.next_attempt_on: `tomorrow` is not a date such as "2026-06-15""#,
        );
    }

    #[test]
    fn a_card() {
        let good = || envelope("card.expiry", card());
        check(
            good(),
            "/data/card/expires",
            json!("06/26"),
            r#"data.card.expires: `06/26` is not a month such as "2026-06""#,
        );
        check(good(), "/data/card/expires", absent(), "data.card: missing field `expires`");
        check(good(), "/data/card/id", absent(), "data.card: missing field `id`");
        check(
            good(),
            "/data/subscription_id",
            json!("sub-1"),
            "data.subscription_id: unknown field `subscription_id`, expected one of `organization_id`, `account_id`, `card`",
        );
        check(
            good(),
            "/data/actor",
            admin(),
            "data.actor: unknown field `actor`, expected one of `organization_id`, `account_id`, `card`",
        );
    }

    /// An object is not an array of its values, and a name is not an object with that name.
    #[test]
    fn what_serde_would_take_as_well() {
        check_bytes(
            br#"["1.0", "cmd-1", "tests", "card.expiry", "2026-06-15T10:00:00Z", {}]"#,
            "invalid type: sequence, expected an object",
        );
        let with = |message: Value, expected: &str| check_bytes(message.to_string().as_bytes(), expected);
        let mut message = envelope("card.expiry", card());
        message["data"] =
            json!(["org-1", "acc-1", { "id": "c", "brand": "Visa", "last4": "4242", "expires": "2026-06" }]);
        with(message, "data: invalid type: sequence, expected an object");
        let good = || envelope(CANCELLATION, json!({ "actor": admin(), "via": "purchases" }));
        check(good(), "/specversion", json!({ "1.0": null }), "specversion: invalid type: map, expected a string");
        check(good(), "/type", json!({ "card.expiry": null }), "type: invalid type: map, expected a string");
        check(
            good(),
            "/data/actor",
            json!(["admin", "adm-1", null, null]),
            "data.actor: invalid type: sequence, expected an object",
        );
        check(
            good(),
            "/data/actor/role",
            json!({ "admin": null }),
            "data.actor.role: invalid type: map, expected a string",
        );
        check(good(), "/data/via", json!({ "purchases": null }), "data.via: invalid type: map, expected a string");
        check(
            envelope(REQUEST, json!({ "actor": client() })),
            "/data/actor",
            json!(["client", null, "acc-1", null]),
            "data.actor: invalid type: sequence, expected an object",
        );
        let good = || envelope(CONFIRMATION, json!({ "actor": admin(), "decision": "accept" }));
        check(
            good(),
            "/data/actor",
            json!(["admin", "adm-1", null, null]),
            "data.actor: invalid type: sequence, expected an object",
        );
        check(
            good(),
            "/data/decision",
            json!({ "accept": null }),
            "data.decision: invalid type: map, expected a string",
        );
        check(
            envelope("payment.failure", payment()),
            "/data/amount",
            json!(["49.99", "CAD"]),
            "data.amount: invalid type: sequence, expected an object",
        );
        check(
            envelope("payment.failure", payment()),
            "/data/card",
            json!(["Visa", "4242"]),
            "data.card: invalid type: sequence, expected an object",
        );
        check(
            envelope("card.expiry", card()),
            "/data/card",
            json!(["card-1", "Visa", "4242", "2026-06"]),
            "data.card: invalid type: sequence, expected an object",
        );
    }

    #[test]
    fn a_key_that_comes_twice() {
        let good = envelope(CANCELLATION, json!({ "actor": admin(), "via": "purchases" })).to_string();
        check_bytes(
            good.replace("\"id\":\"cmd-1\"", "\"id\":\"cmd-1\",\"id\":\"cmd-2\"").as_bytes(),
            "duplicate field `id`",
        );
        check_bytes(good.replace("\"via\":", "\"via\":\"account\",\"via\":").as_bytes(), "data: duplicate field `via`");
        check_bytes(
            good.replace("\"role\":", "\"role\":\"client\",\"role\":").as_bytes(),
            "data.actor: duplicate field `role`",
        );
    }

    /// As deep as 256 KiB allow, in what is read and in what is not.
    #[test]
    fn deep_nesting() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let good = envelope("card.expiry", card()).to_string();
        check_bytes(deep.as_bytes(), "invalid type: sequence, expected an object");
        check_bytes(
            good.replace("\"Visa\"", &deep).as_bytes(),
            "data.card.brand: invalid type: sequence, expected a string",
        );
        let ignored = good.replace("\"data\":", &format!("\"comment\":{deep},\"data\":"));
        assert!(Command::parse(ignored.as_bytes()).is_ok(), "nobody reads it, so it does no harm");
    }

    /// The sentence travels in a header and is printed on terminals: it stays short and harmless, whatever was sent.
    #[test]
    fn the_sentence_is_bounded() {
        let good = || envelope(CANCELLATION, json!({ "actor": admin(), "via": "purchases" }));
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
            let error = parse(&message).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
            assert!(error.chars().count() <= 301 && !error.contains('\u{1b}'), "{error}");
        }
        let mut message = good();
        message["data"][&long] = 1.into();
        let error = parse(&message).unwrap_err().to_string();
        assert!(error.starts_with("data.") && error.chars().count() <= 301 && !error.contains('\u{1b}'), "{error}");
    }
}

proptest! {
    #[test]
    fn random_bytes_are_no_command(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Command::parse(&bytes).is_err());
    }

    /// A good command, damaged in a few places: read or refused with a bounded sentence, and never worse.
    #[test]
    fn damaged_commands(which in 0..8_usize, damage in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6)) {
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

    /// Text is measured by what it is made of, whatever that is.
    #[test]
    fn text_is_counted_in_characters(text in "\\PC{0,12}") {
        let is_short_enough = (2..=8).contains(&text.chars().count());
        prop_assert_eq!(Text::<2, 8>::try_from(text.as_str()).is_ok(), is_short_enough);
    }
}

#[test]
fn every_command_is_accepted() {
    for message in every_command() {
        let command = parse(&message).unwrap();
        assert_eq!(message["type"], command.reference.kind.as_str());
        assert!(CommandType::ALL.contains(&command.reference.kind));
        // The audit trail names it in the same words.
        let reference = json!({ "source": "tests", "id": "cmd-1", "type": message["type"] });
        assert_eq!(serde_json::to_value(&command.reference).unwrap(), reference);
        assert_eq!(serde_json::from_value::<CommandRef>(reference).unwrap(), command.reference);
    }
}

/// Documents keep actors as commands bring them.
#[test]
fn actors_are_written_as_they_are_read() {
    for actor in [admin(), client()] {
        let read: Actor = serde_json::from_value(actor.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), actor);
    }
}

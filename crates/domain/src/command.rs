//! The commands (contract §2): what upstream systems may ask, read from bytes into types that need no further check.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use super::billing::{YearMonth, parse_date};
use super::ids::{
    AccountId, AdminId, CardBrand, CardId, FreeText, InvoiceId, OrganizationId, PersonName, SubscriptionId, Target,
    Text,
};

/// The largest command, in bytes.
pub const COMMAND_BYTES_MAX: usize = 256 * 1024;

/// The years in which every date, month and instant of a command lies (contract §2). Some systems send the year 1 for a time
/// that nobody has set. The upper end leaves room below the largest date that other systems use as "never".
pub const COMMAND_YEARS: std::ops::RangeInclusive<i32> = 2000..=2998;

/// The longest sentence about what is wrong with a message, in characters. It travels in a header, and a message may
/// give as the name of a field whatever it likes.
const SENTENCE_CHARS_MAX: usize = 300;

/// What identifies a command: the pair `(source, id)` of its envelope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct CommandKey {
    /// The system that sent it.
    pub source: Text<1, 256>,
    /// Its id there.
    pub id: Text<1, 128>,
}

/// A command as the audit trail and events name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandRef {
    /// `(source, id)`.
    #[serde(flatten)]
    pub key: CommandKey,
    /// What was asked.
    #[serde(rename = "type")]
    pub kind: CommandType,
}

/// The five commands, by the `type` of their envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum CommandType {
    /// An administrator or a client cancels.
    #[serde(rename = "subscription.cancellation")]
    Cancellation,
    /// A client asks to cancel.
    #[serde(rename = "subscription.cancellation-request")]
    CancellationRequest,
    /// An administrator accepts or declines what a client asked.
    #[serde(rename = "subscription.cancellation-confirmation")]
    CancellationConfirmation,
    /// An automatic payment with a saved card was refused.
    #[serde(rename = "payment.failure")]
    PaymentFailure,
    /// A saved card is about to expire, or has expired.
    #[serde(rename = "card.expiry")]
    CardExpiry,
}

impl CommandType {
    /// Every command, in the contract's order.
    pub const ALL: [Self; 5] = [
        Self::Cancellation,
        Self::CancellationRequest,
        Self::CancellationConfirmation,
        Self::PaymentFailure,
        Self::CardExpiry,
    ];

    /// The envelope's `type`, which is also the routing key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancellation => "subscription.cancellation",
            Self::CancellationRequest => "subscription.cancellation-request",
            Self::CancellationConfirmation => "subscription.cancellation-confirmation",
            Self::PaymentFailure => "payment.failure",
            Self::CardExpiry => "card.expiry",
        }
    }
}

impl fmt::Display for CommandType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A command, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// How the audit trail and events name it.
    pub reference: CommandRef,
    /// When the upstream system says that it happened.
    pub time: DateTime<Utc>,
    /// What is asked.
    pub body: CommandBody,
}

/// What is asked, by what it is about.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandBody {
    /// About a subscription.
    Subscription(SubscriptionCommand),
    /// About an account: `card.expiry`.
    CardExpiry(CardExpiry),
}

/// What is asked about a subscription, by type.
#[derive(Clone, Debug, PartialEq)]
pub enum SubscriptionCommand {
    /// `subscription.cancellation`
    Cancellation(Cancellation),
    /// `subscription.cancellation-request`
    CancellationRequest(CancellationRequest),
    /// `subscription.cancellation-confirmation`
    CancellationConfirmation(CancellationConfirmation),
    /// `payment.failure`
    PaymentFailure(PaymentFailure),
}

impl SubscriptionCommand {
    /// The organization in whose name it was sent.
    #[must_use]
    pub fn organization_id(&self) -> &OrganizationId {
        match self {
            Self::Cancellation(data) => &data.organization_id,
            Self::CancellationRequest(data) => &data.organization_id,
            Self::CancellationConfirmation(data) => &data.organization_id,
            Self::PaymentFailure(data) => &data.organization_id,
        }
    }

    /// The subscription that it is about.
    #[must_use]
    pub fn subscription_id(&self) -> &SubscriptionId {
        match self {
            Self::Cancellation(data) => &data.subscription_id,
            Self::CancellationRequest(data) => &data.subscription_id,
            Self::CancellationConfirmation(data) => &data.subscription_id,
            Self::PaymentFailure(data) => &data.subscription_id,
        }
    }
}

impl Command {
    /// Reads a command from the bytes of a message.
    ///
    /// # Errors
    /// [`InvalidCommand`] when they are too many, not JSON, not the envelope, of an unknown type, or when a field of
    /// `data` is missing, unknown or not what the contract says.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidCommand> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(InvalidCommand::TooLarge { bytes: bytes.len() });
        }
        // First, because what is ignored is not read, and so would not be checked.
        let text = str::from_utf8(bytes).map_err(|error| InvalidCommand::malformed(&format!("not JSON: {error}")))?;
        let envelope: Envelope = read_json(text, "")?;
        let data = envelope.data.get();
        let body = match envelope.kind {
            CommandType::CardExpiry => CommandBody::CardExpiry(read_json(data, "data")?),
            CommandType::Cancellation => {
                CommandBody::Subscription(SubscriptionCommand::Cancellation(read_json(data, "data")?))
            }
            CommandType::CancellationRequest => {
                CommandBody::Subscription(SubscriptionCommand::CancellationRequest(read_json(data, "data")?))
            }
            CommandType::CancellationConfirmation => {
                CommandBody::Subscription(SubscriptionCommand::CancellationConfirmation(read_json(data, "data")?))
            }
            CommandType::PaymentFailure => {
                CommandBody::Subscription(SubscriptionCommand::PaymentFailure(read_json(data, "data")?))
            }
        };
        Ok(Self {
            reference: CommandRef { key: CommandKey { source: envelope.source, id: envelope.id }, kind: envelope.kind },
            time: envelope.time,
            body,
        })
    }

    /// The organization in whose name it was sent.
    #[must_use]
    pub fn organization_id(&self) -> &OrganizationId {
        match &self.body {
            CommandBody::Subscription(data) => data.organization_id(),
            CommandBody::CardExpiry(data) => &data.organization_id,
        }
    }

    /// The document that it is about.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        match &self.body {
            CommandBody::Subscription(data) => Target::Subscription(data.subscription_id()),
            CommandBody::CardExpiry(data) => Target::Account(&data.account_id),
        }
    }
}

/// Why bytes are not a command. The sentence names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    /// Larger than [`COMMAND_BYTES_MAX`]; nothing of it was read.
    #[error("the message has {bytes} bytes; a command has at most {COMMAND_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, not the envelope, unknown type, or a wrong field.
    #[error("{0}")]
    Malformed(String),
}

impl InvalidCommand {
    /// Cuts the sentence to what a header can carry, and keeps from it what would command a terminal.
    fn malformed(sentence: &str) -> Self {
        let mut chars = sentence.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char });
        let mut sentence: String = chars.by_ref().take(SENTENCE_CHARS_MAX).collect();
        if chars.next().is_some() {
            sentence.push('…');
        }
        Self::Malformed(sentence)
    }
}

/// Reads a JSON object; the error is a sentence that begins with the path of the field.
fn read_json<'a, T: Deserialize<'a>>(text: &'a str, at: &str) -> Result<T, InvalidCommand> {
    let mut json = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let path = match (at, path.as_str()) {
            ("", ".") => String::new(),
            (_, ".") => format!("{at}: "),
            ("", _) => format!("{path}: "),
            _ => format!("{at}.{path}: "),
        };
        let error = error.into_inner();
        let position = format!(" at line {} column {}", error.line(), error.column());
        let full = error.to_string();
        // The path says where better than the position, which within `data` is not even that in the message.
        let sentence = full.strip_suffix(&position).unwrap_or(&full);
        InvalidCommand::malformed(&match error.classify() {
            serde_json::error::Category::Data => format!("{path}{sentence}"),
            _ if at.is_empty() => format!("not JSON: {full}"),
            _ => format!("{path}not JSON: {sentence}"),
        })
    })?;
    json.end().map_err(|error| InvalidCommand::malformed(&format!("not JSON: {error}")))?;
    Ok(value)
}

/// A structure that is read from an object only; by itself serde takes an array of its values just as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// `#[serde(deserialize_with = "object")]`: a field that is an [`Object`].
fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// `#[serde(deserialize_with = "name")]`: one of several names, read from a text only; by itself serde takes
/// `{"name": null}` just as well.
fn name<'de, D: Deserializer<'de>, T: de::DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    T::deserialize(text.as_ref().into_deserializer())
}

/// The envelope: CloudEvents 1.0, structured. Other attributes are allowed and ignored.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "specversion", deserialize_with = "name")]
    _specversion: SpecVersion,
    id: Text<1, 128>,
    source: Text<1, 256>,
    #[serde(rename = "type", deserialize_with = "name")]
    kind: CommandType,
    #[serde(deserialize_with = "rfc3339")]
    time: DateTime<Utc>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
enum SpecVersion {
    #[serde(rename = "1.0")]
    V1,
}

/// Reads a time, to the millisecond: a database keeps no more, and what is read back must be what was decided with.
fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    let time = DateTime::parse_from_rfc3339(&text)
        .ok()
        .and_then(|time| DateTime::from_timestamp_millis(time.timestamp_millis()))
        .ok_or_else(|| de::Error::custom("not a time of RFC 3339 such as \"2026-06-15T10:00:00Z\""))?;
    within_years(time.year(), time)
}

/// `#[serde(deserialize_with = "date")]`: a date such as `"2026-06-15"`, of [`COMMAND_YEARS`]; or absent.
fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NaiveDate>, D::Error> {
    let Some(text) = Option::<Cow<str>>::deserialize(deserializer)? else { return Ok(None) };
    let date = parse_date(&text).map_err(de::Error::custom)?;
    within_years(date.year(), Some(date))
}

/// `#[serde(deserialize_with = "month")]`: a month such as `"2026-06"`, of [`COMMAND_YEARS`].
fn month<'de, D: Deserializer<'de>>(deserializer: D) -> Result<YearMonth, D::Error> {
    let month = YearMonth::deserialize(deserializer)?;
    within_years(month.first_day().year(), month)
}

/// The same for a month that may be absent.
fn month_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<YearMonth>, D::Error> {
    let Some(month) = Option::<YearMonth>::deserialize(deserializer)? else { return Ok(None) };
    within_years(month.first_day().year(), Some(month))
}

fn within_years<T, E: de::Error>(year: i32, value: T) -> Result<T, E> {
    if COMMAND_YEARS.contains(&year) {
        Ok(value)
    } else {
        let (first, last) = (COMMAND_YEARS.start(), COMMAND_YEARS.end());
        Err(E::custom(format!("the year {year:04} is outside {first} to {last}; is it a date that was never set?")))
    }
}

/// Who acts: someone of the organization, or the client from their own account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Actor {
    /// Works for the organization.
    Admin {
        /// Their id upstream.
        id: AdminId,
        /// Their name.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<PersonName>,
    },
    /// Acts from their own account.
    Client {
        /// The account they act from.
        account_id: AccountId,
        /// Their name.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<PersonName>,
    },
}

/// [`Actor`] as a command has it: flat, so that an error can name the field, and without unknown fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActorFields {
    #[serde(deserialize_with = "name")]
    role: Role,
    id: Option<AdminId>,
    account_id: Option<AccountId>,
    name: Option<PersonName>,
}

/// `#[serde(deserialize_with = "actor")]`
fn actor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Actor, D::Error> {
    Actor::try_from(object::<_, ActorFields>(deserializer)?).map_err(de::Error::custom)
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Admin,
    Client,
}

impl TryFrom<ActorFields> for Actor {
    type Error = &'static str;

    fn try_from(fields: ActorFields) -> Result<Self, Self::Error> {
        match (fields.role, fields.id, fields.account_id) {
            (Role::Admin, Some(id), None) => Ok(Self::Admin { id, name: fields.name }),
            (Role::Client, None, Some(account_id)) => Ok(Self::Client { account_id, name: fields.name }),
            (Role::Admin, None, _) => Err("missing field `id` (an admin has an `id`)"),
            (Role::Client, _, None) => Err("missing field `account_id` (a client has an `account_id`)"),
            (Role::Admin, _, Some(_)) => Err("unknown field `account_id` (an admin has an `id` and a `name`)"),
            (Role::Client, Some(_), _) => Err("unknown field `id` (a client has an `account_id` and a `name`)"),
        }
    }
}

/// `subscription.cancellation`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "CancellationFields")]
pub struct Cancellation {
    /// In whose name.
    pub organization_id: OrganizationId,
    /// What is cancelled.
    pub subscription_id: SubscriptionId,
    /// Who cancels.
    pub actor: Actor,
    /// Where they did it, with what that place asks.
    pub via: CancellationVia,
    /// In their words.
    pub reason: Option<FreeText>,
}

/// Where a subscription was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancellationVia {
    /// The purchases tab of the client's account, by an admin.
    Purchases {
        /// The month of cancellation; absent: before the next invoice.
        month: Option<YearMonth>,
    },
    /// The newest invoice, by an admin: bought by mistake, everything is removed.
    Invoice {
        /// That invoice.
        invoice_id: InvoiceId,
        /// Whether it is refunded.
        refund: bool,
    },
    /// The client's own account.
    Account,
}

/// [`Cancellation`] as it is read: flat, so that an error can name the field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancellationFields {
    organization_id: OrganizationId,
    subscription_id: SubscriptionId,
    #[serde(deserialize_with = "actor")]
    actor: Actor,
    #[serde(deserialize_with = "name")]
    via: ViaName,
    reason: Option<FreeText>,
    #[serde(default, deserialize_with = "month_option")]
    month: Option<YearMonth>,
    invoice_id: Option<InvoiceId>,
    refund: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ViaName {
    Purchases,
    Invoice,
    Account,
}

impl TryFrom<CancellationFields> for Cancellation {
    type Error = &'static str;

    fn try_from(fields: CancellationFields) -> Result<Self, Self::Error> {
        let via = fields.via;
        if fields.month.is_some() && via != ViaName::Purchases {
            return Err("unknown field `month` (it goes with `via: \"purchases\"` only)");
        }
        if fields.invoice_id.is_some() && via != ViaName::Invoice {
            return Err("unknown field `invoice_id` (it goes with `via: \"invoice\"` only)");
        }
        if fields.refund.is_some() && via != ViaName::Invoice {
            return Err("unknown field `refund` (it goes with `via: \"invoice\"` only)");
        }
        Ok(Self {
            organization_id: fields.organization_id,
            subscription_id: fields.subscription_id,
            actor: fields.actor,
            via: match via {
                ViaName::Purchases => CancellationVia::Purchases { month: fields.month },
                ViaName::Invoice => CancellationVia::Invoice {
                    invoice_id: fields.invoice_id.ok_or("missing field `invoice_id` (`via: \"invoice\"` needs it)")?,
                    refund: fields.refund.unwrap_or(false),
                },
                ViaName::Account => CancellationVia::Account,
            },
            reason: fields.reason,
        })
    }
}

impl JsonSchema for Cancellation {
    fn schema_name() -> Cow<'static, str> {
        "Cancellation".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut variant = |via: &str, description: &str, extra: &[(&str, Schema)], required: &[&str]| {
            let mut properties = serde_json::Map::from_iter([
                ("organization_id".to_owned(), generator.subschema_for::<OrganizationId>().to_value()),
                ("subscription_id".to_owned(), generator.subschema_for::<SubscriptionId>().to_value()),
                ("actor".to_owned(), generator.subschema_for::<Actor>().to_value()),
                ("via".to_owned(), serde_json::json!({ "const": via })),
                ("reason".to_owned(), generator.subschema_for::<Option<FreeText>>().to_value()),
            ]);
            properties.extend(extra.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone().to_value())));
            let required: Vec<&str> =
                ["organization_id", "subscription_id", "actor", "via"].iter().chain(required).copied().collect();
            serde_json::json!({
                "type": "object", "description": description, "properties": properties, "required": required,
                "additionalProperties": false,
            })
        };
        let month = SchemaGenerator::default().subschema_for::<Option<YearMonth>>();
        let invoice = SchemaGenerator::default().subschema_for::<InvoiceId>();
        let refund = SchemaGenerator::default().subschema_for::<Option<bool>>();
        let variants = [
            variant("purchases", "By an admin, from the purchases tab.", &[("month", month)], &[]),
            variant(
                "invoice",
                "By an admin, from the newest invoice: bought by mistake, everything is removed.",
                &[("invoice_id", invoice), ("refund", refund)],
                &["invoice_id"],
            ),
            variant("account", "By the client, from their own account.", &[], &[]),
        ];
        json_schema!({ "description": "`subscription.cancellation`", "oneOf": variants })
    }
}

/// `subscription.cancellation-request`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancellationRequest {
    /// In whose name.
    pub organization_id: OrganizationId,
    /// What the client wants cancelled.
    pub subscription_id: SubscriptionId,
    /// Who asks.
    #[serde(deserialize_with = "actor")]
    pub actor: Actor,
    /// In their words.
    pub reason: Option<FreeText>,
}

/// `subscription.cancellation-confirmation`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "ConfirmationFields")]
pub struct CancellationConfirmation {
    /// In whose name.
    pub organization_id: OrganizationId,
    /// The subscription whose request is decided.
    pub subscription_id: SubscriptionId,
    /// Who decides.
    pub actor: Actor,
    /// What they decide.
    pub decision: ConfirmationDecision,
    /// What they say about it.
    pub note: Option<FreeText>,
}

/// The answer to a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfirmationDecision {
    /// The subscription ends.
    Accept {
        /// The date of the last invoice; absent: the newest one that exists.
        final_billing_date: Option<NaiveDate>,
    },
    /// The subscription goes on.
    Decline,
}

/// [`CancellationConfirmation`] as it is read: flat, so that an error can name the field.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    rename = "CancellationConfirmation",
    description = "`subscription.cancellation-confirmation`",
    extend("dependentSchemas" = { "final_billing_date": { "properties": { "decision": { "const": "accept" } } } })
)]
struct ConfirmationFields {
    /// In whose name.
    organization_id: OrganizationId,
    /// The subscription whose request is decided.
    subscription_id: SubscriptionId,
    /// Who decides.
    #[serde(deserialize_with = "actor")]
    actor: Actor,
    /// The answer.
    #[serde(deserialize_with = "name")]
    decision: DecisionName,
    /// The date of the last invoice (accept only).
    #[serde(default, deserialize_with = "date")]
    final_billing_date: Option<NaiveDate>,
    /// What the administrator says about it.
    note: Option<FreeText>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum DecisionName {
    Accept,
    Decline,
}

impl TryFrom<ConfirmationFields> for CancellationConfirmation {
    type Error = &'static str;

    fn try_from(fields: ConfirmationFields) -> Result<Self, Self::Error> {
        let decision = match (fields.decision, fields.final_billing_date) {
            (DecisionName::Accept, final_billing_date) => ConfirmationDecision::Accept { final_billing_date },
            (DecisionName::Decline, None) => ConfirmationDecision::Decline,
            (DecisionName::Decline, Some(_)) => {
                return Err("unknown field `final_billing_date` (it goes with `decision: \"accept\"` only)");
            }
        };
        Ok(Self {
            organization_id: fields.organization_id,
            subscription_id: fields.subscription_id,
            actor: fields.actor,
            decision,
            note: fields.note,
        })
    }
}

impl JsonSchema for CancellationConfirmation {
    fn schema_name() -> Cow<'static, str> {
        ConfirmationFields::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        ConfirmationFields::json_schema(generator)
    }
}

/// `payment.failure`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PaymentFailure {
    /// In whose name.
    pub organization_id: OrganizationId,
    /// The subscription that was invoiced.
    pub subscription_id: SubscriptionId,
    /// The invoice that is not paid.
    pub invoice_id: InvoiceId,
    /// What is due.
    #[serde(deserialize_with = "amount")]
    pub amount: Amount,
    /// The card that was refused.
    #[serde(deserialize_with = "payment_card")]
    pub card: PaymentCard,
    /// Which try it was, from 1.
    pub attempt: Attempt,
    /// What the payment system says.
    /// Cut after 2,000 characters: a bank's message has no limit in the contract, and its length is nobody's mistake.
    #[serde(default, deserialize_with = "cut")]
    #[schemars(with = "Option<String>")]
    pub failure_message: Option<FreeText>,
    /// The day of the next try; absent: there is none.
    #[serde(default, deserialize_with = "date")]
    pub next_attempt_on: Option<NaiveDate>,
}

fn cut<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FreeText>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(FreeText::cut))
}

/// Money.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Amount {
    /// Decimal, with a point: `"49.99"`.
    pub value: Decimal,
    /// ISO 4217, three capitals: `"CAD"`.
    pub currency: Currency,
}

/// `#[serde(deserialize_with = "amount")]`: an [`Amount`] without unknown fields.
fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        value: Decimal,
        currency: Currency,
    }
    let Fields { value, currency } = object(deserializer)?;
    Ok(Amount { value, currency })
}

/// Declares a text that has been checked against a form.
macro_rules! formed_text {
    ($(#[$meta:meta])* $name:ident, $pattern:literal, $example:literal, $check:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = String;

            fn try_from(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(concat!("must look like \"", $example, "\" (", $pattern, ")").to_owned())
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::try_from(&*Cow::<str>::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

formed_text! {
    /// An amount, never negative, of at most 12 digits before the point and 4 after it.
    Decimal, "^[0-9]{1,12}([.][0-9]{1,4})?$", "49.99", |text| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        (1..=12).contains(&whole.len()) && (1..=4).contains(&fraction.len()) && all_digits(whole) && all_digits(fraction)
    }
}

formed_text! {
    /// A currency code of ISO 4217.
    Currency, "^[A-Z]{3}$", "CAD", |text| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

formed_text! {
    /// The last four digits of a card.
    Last4, "^[0-9]{4}$", "4242", |text| text.len() == 4 && all_digits(text)
}

/// The number of a payment attempt, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Attempt(#[schemars(range(min = 1))] u32);

impl Attempt {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Attempt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            0 => Err(de::Error::custom("attempts are counted from 1")),
            attempt => Ok(Self(attempt)),
        }
    }
}

/// A card as a payment shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentCard {
    /// `"Visa"`
    pub brand: CardBrand,
    /// `"4242"`
    pub last4: Last4,
}

/// `#[serde(deserialize_with = "payment_card")]`: a [`PaymentCard`] without unknown fields.
fn payment_card<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PaymentCard, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        brand: CardBrand,
        last4: Last4,
    }
    let Fields { brand, last4 } = object(deserializer)?;
    Ok(PaymentCard { brand, last4 })
}

/// `card.expiry`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CardExpiry {
    /// In whose name.
    pub organization_id: OrganizationId,
    /// The account that holds the card.
    pub account_id: AccountId,
    /// The card.
    #[serde(deserialize_with = "object")]
    pub card: Card,
}

/// A saved card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Its id in the payment system.
    pub id: CardId,
    /// `"Visa"`
    pub brand: CardBrand,
    /// `"4242"`
    pub last4: Last4,
    /// The month to whose end it is valid.
    #[serde(deserialize_with = "month")]
    pub expires: YearMonth,
}

#[cfg(any(test, fuzzing))]
pub mod properties;
#[cfg(test)]
mod tests;

//! `subscription.cancellation`: an administrator cancels from the purchases tab or the newest invoice, or the client cancels.

use std::borrow::Cow;

use chrono::NaiveDate;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::actor::{Actor, actor};
use crate::calendar::YearMonth;
use crate::checks::{Live, require_admin, require_before_natural_end, require_live, require_owner};
use crate::command_ref::CommandRef;
use crate::decision::{Change, Context, Decision, Obstacle};
use crate::ending::{Ending, ScheduledCancellation};
use crate::event::{About, Event, Removed};
use crate::facts::Facts;
use crate::field::Field;
use crate::ids::{FreeText, InvoiceId, OrganizationId, SubscriptionId};
use crate::notification::{Recipient, Template};
use crate::organization::ClientCancellation;
use crate::rejection::RejectionReason;
use crate::strict_json::{month_option, name};
use crate::subscription::{CancellationRecord, Channel, Details, Initiator, RequestDecision, Status, Subscription};

/// `subscription.cancellation`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "CancellationFields")]
pub struct Cancellation {
    /// The organization in whose name the command is sent.
    pub organization_id: OrganizationId,
    /// The subscription to cancel.
    pub subscription_id: SubscriptionId,
    /// Who cancels.
    pub actor: Actor,
    /// Where they cancelled.
    pub via: CancellationVia,
    /// Their reason. An administrator's is stored and published, and in no email to the client.
    pub reason: Option<FreeText>,
}

/// Where the subscription was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancellationVia {
    /// The purchases tab of the client's account, by an administrator.
    Purchases {
        /// The month of cancellation; absent if the subscription ends before the next invoice.
        month: Option<YearMonth>,
        /// The administrator's words to the client.
        message: Option<FreeText>,
    },
    /// The newest invoice, by an administrator: bought by mistake, so everything is removed.
    Invoice {
        /// The newest invoice.
        invoice_id: InvoiceId,
        /// Whether the invoice is refunded; absent if that is not known.
        refund: Option<bool>,
        /// The administrator's words to the client.
        message: Option<FreeText>,
    },
    /// The client's own account.
    Account,
}

/// The wire form of [`Cancellation`]: flat, so that an error can name the field.
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
    message: Option<FreeText>,
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
        if fields.message.is_some() && via == ViaName::Account {
            return Err("unknown field `message` (it goes with `via: \"purchases\"` and `via: \"invoice\"` only)");
        }
        Ok(Self {
            organization_id: fields.organization_id,
            subscription_id: fields.subscription_id,
            actor: fields.actor,
            via: match via {
                ViaName::Purchases => CancellationVia::Purchases { month: fields.month, message: fields.message },
                ViaName::Invoice => CancellationVia::Invoice {
                    invoice_id: fields.invoice_id.ok_or("missing field `invoice_id` (`via: \"invoice\"` needs it)")?,
                    refund: fields.refund,
                    message: fields.message,
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
        let mut variant = |via: &str, description: &str, reason: &str, extra: &[(&str, Schema)], required: &[&str]| {
            let mut properties = serde_json::Map::from_iter([
                ("organization_id".to_owned(), generator.subschema_for::<OrganizationId>().to_value()),
                ("subscription_id".to_owned(), generator.subschema_for::<SubscriptionId>().to_value()),
                ("actor".to_owned(), generator.subschema_for::<Actor>().to_value()),
                ("via".to_owned(), serde_json::json!({ "const": via })),
                ("reason".to_owned(), described::<Option<FreeText>>(reason).to_value()),
            ]);
            properties.extend(extra.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone().to_value())));
            let required: Vec<&str> =
                ["organization_id", "subscription_id", "actor", "via"].iter().chain(required).copied().collect();
            serde_json::json!({
                "type": "object", "description": description, "properties": properties, "required": required,
                "additionalProperties": false,
            })
        };
        let internal = "The administrator's reason. It is internal: stored and published in the event, and never emailed to the \
                        client. Words to the client go into `message`.";
        let message =
            described::<Option<FreeText>>("The administrator's words to the client, who reads them in the email.");
        let month = described::<Option<YearMonth>>(
            "The month of cancellation. Absent: the subscription ends before its next invoice.",
        );
        let invoice = described::<InvoiceId>("The newest invoice.");
        let refund = described::<Option<bool>>(
            "Whether what was paid is refunded. Absent: the email does not mention a refund.",
        );
        let variants = [
            variant(
                "purchases",
                "By an administrator, from the purchases tab.",
                internal,
                &[("month", month), ("message", message.clone())],
                &[],
            ),
            variant(
                "invoice",
                "By an administrator, from the newest invoice: bought by mistake, so everything is removed.",
                internal,
                &[("invoice_id", invoice), ("refund", refund), ("message", message)],
                &["invoice_id"],
            ),
            variant(
                "account",
                "By the client, from their own account.",
                "The client's reason, in their words. The organization reads it in the email.",
                &[],
                &[],
            ),
        ];
        json_schema!({ "description": "`subscription.cancellation`", "oneOf": variants })
    }
}

/// The schema of a field, with what senders have to know about it.
fn described<T: JsonSchema>(description: &str) -> Schema {
    let mut schema = SchemaGenerator::default().subschema_for::<T>();
    schema.insert("description".to_owned(), description.into());
    schema
}

/// The rule: by whom, from where, until when.
pub(super) fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    data: &Cancellation,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    match &data.via {
        CancellationVia::Purchases { month, .. } => {
            require_admin(&data.actor, "cancel from the purchases tab")?;
            let Live { details, next_on } = require_live(subscription)?;
            let ending = match month {
                Some(month) => ending_in_month(details, *month, next_on)?,
                None => Ending::before_next_invoice(details, next_on)?,
            };
            let origin = (Initiator::Admin, Channel::Purchases, *month);
            schedule(subscription, details, command, data, origin, ending, context)
        }
        CancellationVia::Account => {
            require_owner(&data.actor, subscription, "cancel from their account")?;
            if context.organization.client_cancellation.clone()? == ClientCancellation::Request {
                return Err(RejectionReason::RequestRequired
                    .because("The organization wants its clients to send a cancellation request.")
                    .into());
            }
            let Live { details, next_on } = require_live(subscription)?;
            let ending = Ending::before_next_invoice(details, next_on)?;
            let origin = (Initiator::Client, Channel::Account, None);
            schedule(subscription, details, command, data, origin, ending, context)
        }
        CancellationVia::Invoice { invoice_id, refund, message } => {
            require_admin(&data.actor, "cancel from an invoice")?;
            let Live { details, .. } = require_live(subscription)?;
            require_last_invoice(details, invoice_id)?;
            let invoice = CancelledInvoice { invoice_id, refund: *refund, message: message.as_ref() };
            Ok(Decision::Applied(remove(subscription, details, command, data, invoice, context)?))
        }
    }
}

fn ending_in_month(details: &Details, month: YearMonth, next_on: NaiveDate) -> Result<Ending, Obstacle> {
    if month < YearMonth::of(next_on) {
        return Err(RejectionReason::MonthAlreadyInvoiced
            .because(format!(
                "The next invoice is that of {next_on}, so {} is the earliest month of cancellation; {month} was chosen.",
                YearMonth::of(next_on)
            ))
            .into());
    }
    let end = details.billing_day.clone()?.end_in_month(details.billing_mode.clone()?, month);
    Ok(Ending::computed(details, end, next_on)?)
}

/// Schedules the end, unless it is already scheduled for that day or an earlier one.
fn schedule(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &Cancellation,
    (by, via, month): (Initiator, Channel, Option<YearMonth>),
    ending: Ending,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    require_before_natural_end(details, ending.ends_on)?;
    if subscription.status == Status::CancellationScheduled {
        match details.end.clone()? {
            Some(scheduled) if ending.ends_on == scheduled.ends_on => return Ok(Decision::Unchanged),
            Some(scheduled) if ending.ends_on > scheduled.ends_on => {
                return Err(RejectionReason::LaterThanScheduled
                    .because(format!(
                        "The last day of access is {} and can only be moved earlier; {} would be later.",
                        scheduled.ends_on, ending.ends_on
                    ))
                    .into());
            }
            _ => {}
        }
    }
    let cancellation = ScheduledCancellation {
        command,
        ending,
        record: CancellationRecord {
            by,
            via,
            scheduled_at: context.now,
            actor: data.actor.clone(),
            reason: data.reason.clone(),
            month,
        },
        request_decision: RequestDecision::Superseded,
        note: None,
        message: match &data.via {
            CancellationVia::Purchases { message, .. } => message.clone(),
            CancellationVia::Invoice { .. } | CancellationVia::Account => None,
        },
        template: match by {
            Initiator::Admin => Template::CancelledByAdmin,
            Initiator::Client => Template::CancelledByClient,
        },
    };
    Ok(Decision::Applied(cancellation.change(subscription, details, context)?))
}

fn require_last_invoice(details: &Details, invoice_id: &InvoiceId) -> Result<(), Obstacle> {
    let detail = match details.last_invoice_id.clone()? {
        Some(last) if last == *invoice_id => return Ok(()),
        Some(last) => format!(
            "Only the newest invoice, {last}, can be cancelled together with the subscription; {invoice_id} was named."
        ),
        None => format!("The subscription has no invoice yet; {invoice_id} was named."),
    };
    Err(RejectionReason::NotLastInvoice.because(detail).into())
}

/// The invoice from which a subscription is removed.
struct CancelledInvoice<'a> {
    invoice_id: &'a InvoiceId,
    refund: Option<bool>,
    /// The administrator's words to the client.
    message: Option<&'a FreeText>,
}

/// Removes a subscription bought by mistake: it ends today, and only a tombstone remains.
fn remove(
    subscription: &Subscription,
    details: &Details,
    command: &CommandRef,
    data: &Cancellation,
    CancelledInvoice { invoice_id, refund, message }: CancelledInvoice<'_>,
    context: &Context<'_>,
) -> Field<Change> {
    let today = context.organization.date_at(context.now)?;
    let facts = Facts {
        actor: data.actor.name().map(ToString::to_string),
        removed_on: Some(today),
        invoice_id: Some(invoice_id.to_string()),
        refund,
        message: message.map(ToString::to_string),
        ..context.facts(subscription, details)?
    };
    let event = Removed { invoice_id: invoice_id.clone(), refund, activities: details.activities.clone()? };
    // The tombstone keeps nothing personal, so the history has no reason.
    Ok(Change::to(Status::Removed, subscription, None, context.now)
        .by(&data.actor, command)
        .via(Channel::Invoice)
        .ended_on(today)
        .notify([context.email(Template::RemovedByAdmin, Recipient::AccountManager, &facts)?])
        .event(Event::Removed(About::new(subscription, event))))
}

#[cfg(test)]
mod tests;

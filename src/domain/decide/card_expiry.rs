//! `card.expiry`: a saved card is about to expire, or has expired. One notice per card, expiry month and lead time,
//! whether a command or the calendar asks for it.

use chrono::NaiveDate;

use super::{Context, NoticeGiven, Outcome};
use crate::domain::account::{Account, CardNotice, NoticeKind};
use crate::domain::command::Card;
use crate::domain::notification::{CardFacts, Facts, Template};

/// Decides a command about a card of this account.
#[must_use]
pub fn decide(account: &Account, card: &Card, context: &Context<'_>) -> Outcome<NoticeGiven> {
    let today = context.organization.date_at(context.now);
    let notice = CardNotice {
        card_id: card.id.clone(),
        expires: card.expires,
        kind: NoticeKind::due(card.expires, today, &context.organization.card_notice_days),
        at: context.now,
    };
    if account.card_notices.iter().any(|given| given.repeats(&notice)) {
        return Outcome::Unchanged;
    }
    let facts = Facts {
        card: Some(CardFacts {
            brand: card.brand.to_string(),
            last4: card.last4.as_str().to_owned(),
            expires: Some(card.expires),
            expired: notice.kind == NoticeKind::Expired,
        }),
        ..Facts::new(context.organization, account)
    };
    Outcome::Applied(NoticeGiven { notice, notifications: context.notify_both(Template::CardExpiring, &facts) })
}

/// As time passes: gives the notice that is due `today` for a saved card, if one is and was not given yet. Only the
/// organization's lead times count here; a card that has expired is no longer "about to".
#[must_use]
pub fn notice_due(account: &Account, card: &Card, today: NaiveDate, context: &Context<'_>) -> Option<NoticeGiven> {
    match NoticeKind::due(card.expires, today, &context.organization.card_notice_days) {
        NoticeKind::Days(_) => match decide(account, card, context) {
            Outcome::Applied(given) => Some(given),
            Outcome::Unchanged => None,
        },
        NoticeKind::Early | NoticeKind::Expired => None,
    }
}

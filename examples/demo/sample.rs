//! The sample data: two organizations, the accounts of their clients, and a dozen subscriptions, as documents of other systems (see
//! `schemas/documents/`). All dates are relative to the day of the run.

use chrono::{Datelike, Days, Months, NaiveDate};
use offramp_domain::billing::{BillingDay, BillingMode};
use offramp_domain::calendar::{YearMonth, day_before, end_of_day};
use serde_json::{Value, json};

/// An organization that sells subscriptions.
pub struct Organization {
    pub id: &'static str,
    pub contact: &'static str,
    pub timezone: chrono_tz::Tz,
}

/// In Québec. Its clients may cancel at once, and get emails about their own actions.
pub const ERABLES: Organization =
    Organization { id: "org-erables", contact: "accueil@erables.example", timezone: chrono_tz::America::Toronto };
/// In British Columbia. Its clients have to send a request.
pub const HARBOUR: Organization =
    Organization { id: "org-harbour", contact: "desk@harbour.example", timezone: chrono_tz::America::Vancouver };

/// The account of a client: its manager gets the emails.
pub struct Account {
    pub id: &'static str,
    pub organization: &'static Organization,
    pub manager: &'static str,
    pub email: &'static str,
    locale: Option<&'static str>,
    /// Brand, last four digits, and in how many months it expires.
    card: Option<(&'static str, &'static str, u32)>,
}

impl Account {
    const fn new(
        id: &'static str,
        organization: &'static Organization,
        manager: &'static str,
        email: &'static str,
    ) -> Self {
        Self { id, organization, manager, email, locale: None, card: None }
    }

    const fn reads(self, locale: &'static str) -> Self {
        Self { locale: Some(locale), ..self }
    }

    const fn pays_with(self, brand: &'static str, last4: &'static str, expires_in_months: u32) -> Self {
        Self { card: Some((brand, last4, expires_in_months)), ..self }
    }

    fn document(&self, today: NaiveDate) -> Value {
        let mut manager = json!({ "name": self.manager, "email": self.email });
        if let Some(locale) = self.locale {
            manager["locale"] = locale.into();
        }
        let mut document = json!({ "_id": self.id, "organization_id": self.organization.id, "manager": manager });
        if let Some((brand, last4, months)) = self.card {
            let expires = YearMonth::of(today + Months::new(months));
            let id = format!("card-{last4}");
            document["cards"] = json!([{ "id": id, "brand": brand, "last4": last4, "expires": expires }]);
        }
        document
    }
}

pub const TREMBLAY: Account = Account::new("acc-tremblay", &ERABLES, "Julie Tremblay", "julie@tremblay.example")
    .reads("fr-CA")
    .pays_with("Visa", "4242", 19);
/// The card expires this month, so the worker sends a notice without a command.
pub const GAGNON: Account = Account::new("acc-gagnon", &ERABLES, "Marc Gagnon", "marc@gagnon.example")
    .reads("fr-CA")
    .pays_with("Mastercard", "5454", 0);
pub const MORENO: Account = Account::new("acc-moreno", &ERABLES, "Lucía Moreno", "lucia@moreno.example")
    .reads("es-MX")
    .pays_with("Visa", "1881", 8);
pub const NGUYEN: Account = Account::new("acc-nguyen", &ERABLES, "Linh Nguyen", "linh@nguyen.example");
pub const FRASER: Account = Account::new("acc-fraser", &HARBOUR, "Sam Fraser", "sam@fraser.example")
    .reads("en-CA")
    .pays_with("American Express", "0005", 27);
pub const SINGH: Account =
    Account::new("acc-singh", &HARBOUR, "Priya Singh", "priya@singh.example").pays_with("Visa", "4000", 3);
/// Lives in Vancouver and reads French.
pub const LEBLANC: Account =
    Account::new("acc-leblanc", &HARBOUR, "Chloé LeBlanc", "chloe@leblanc.example").reads("fr-CA");

const ACCOUNTS: [&Account; 7] = [&TREMBLAY, &GAGNON, &MORENO, &NGUYEN, &FRASER, &SINGH, &LEBLANC];

/// A subscription at the start of the story.
pub struct Subscription {
    pub id: &'static str,
    pub account: &'static Account,
    participant: &'static str,
    plan: &'static str,
    activity: &'static str,
    mode: BillingMode,
    day: u32,
    next_on: NaiveDate,
    expires_on: Option<NaiveDate>,
    /// It was cancelled before the story begins.
    is_cancelled: bool,
}

impl Subscription {
    /// The month in which the next invoice falls, or one that is `months` later.
    pub fn month(&self, months: u32) -> YearMonth {
        YearMonth::of(self.next_on + Months::new(months))
    }

    /// The billing date of that month.
    pub fn billing_date(&self, months: u32) -> NaiveDate {
        self.billing_day().date_in(self.month(months))
    }

    /// The last day of access when that month is chosen.
    pub fn last_day_in(&self, months: u32) -> NaiveDate {
        self.billing_day().end_in_month(self.mode, self.month(months)).ends_on
    }

    /// The last day of access when that month's invoice is the last.
    pub fn last_day_after_invoice(&self, months: u32) -> NaiveDate {
        self.billing_day().end_after_invoice(self.billing_date(months)).ends_on
    }

    /// The last paid day.
    pub fn paid_until(&self) -> NaiveDate {
        day_before(self.next_on)
    }

    pub fn newest_invoice(&self) -> String {
        self.invoice(self.billing_day().date_before(self.next_on))
    }

    pub fn older_invoice(&self) -> String {
        self.invoice(self.billing_day().date_before(self.billing_day().date_before(self.next_on)))
    }

    fn invoice(&self, billed_on: NaiveDate) -> String {
        format!("inv-{}-{}", self.number(), billed_on.format("%Y%m%d"))
    }

    fn number(&self) -> &str {
        self.id.trim_start_matches("sub-")
    }

    /// The billing day in the program's own rules.
    fn billing_day(&self) -> BillingDay {
        #[allow(clippy::expect_used, reason = "the days are written in `Cast::on`")]
        BillingDay::try_from(i64::from(self.day)).expect("a day of the month")
    }

    fn document(&self) -> Value {
        let number = self.number();
        let mut document = json!({
            "_id": self.id,
            "organization_id": self.account.organization.id,
            "account_id": self.account.id,
            "participant": { "id": format!("person-{number}"), "name": self.participant },
            "plan": { "id": format!("plan-{number}"), "name": self.plan },
            "billing": {
                "mode": self.mode,
                "day": self.day,
                "next_on": self.next_on,
                "last_on": self.billing_day().date_before(self.next_on),
                "last_invoice_id": self.newest_invoice(),
            },
            "activities": [{ "id": format!("activity-{number}"), "name": self.activity }],
        });
        if let Some(day) = self.expires_on {
            document["expires_on"] = json!(day);
        }
        if self.is_cancelled {
            let ends_on = self.paid_until();
            document["status"] = "cancellation_scheduled".into();
            document["ends_on"] = json!(ends_on);
            document["ends_at"] = json!({ "$date": end_of_day(ends_on, self.account.organization.timezone) });
            document["final_billing_on"] = json!(self.billing_day().date_before(self.next_on));
            document["version"] = 3.into();
        }
        document
    }
}

/// Every subscription of the story, by its activity.
pub struct Cast {
    today: NaiveDate,
    pub swimming: Subscription,
    pub climbing: Subscription,
    pub gymnastics: Subscription,
    pub hockey: Subscription,
    pub dance: Subscription,
    pub yoga: Subscription,
    pub tennis: Subscription,
    pub fencing: Subscription,
    pub gym: Subscription,
    pub judo: Subscription,
    pub spinning: Subscription,
    pub badminton: Subscription,
    pub rowing: Subscription,
}

impl Cast {
    /// The cast on this day, with all invoices up to `today` issued.
    pub fn on(today: NaiveDate) -> Self {
        let subscription =
            |id, account, participant, plan, activity, (mode, day): (BillingMode, u32)| -> Subscription {
                let (expires_on, is_cancelled) = (None, false);
                let new = Subscription {
                    id,
                    account,
                    participant,
                    plan,
                    activity,
                    mode,
                    day,
                    next_on: today,
                    expires_on,
                    is_cancelled,
                };
                Subscription { next_on: new.billing_day().date_after(today), ..new }
            };
        // Billed on the day of the purchase, or on the organization's fixed day.
        let bought = |day| (BillingMode::Anniversary, day);
        let fixed = |day| (BillingMode::FixedDay, day);
        Self {
            today,
            swimming: subscription("sub-101", &TREMBLAY, "Léa Tremblay", "Natation", "Bain libre", bought(15)),
            climbing: subscription("sub-102", &TREMBLAY, "Noé Tremblay", "Escalade", "Mur libre", fixed(1)),
            gymnastics: subscription("sub-103", &GAGNON, "Olivia Gagnon", "Gymnastique", "Récréatif 2", bought(31)),
            hockey: subscription("sub-104", &GAGNON, "Marc Gagnon", "Hockey cosom", "Ligue du jeudi", fixed(1)),
            dance: subscription("sub-105", &MORENO, "Diego Moreno", "Danse latine", "Bachata 1", bought(30)),
            // Ends by itself in two to three months.
            yoga: Subscription {
                expires_on: Some(today + Days::new(60)),
                ..subscription("sub-106", &MORENO, "Lucía Moreno", "Yoga", "Yoga du mardi", fixed(1))
            },
            // Cancelled last month, with yesterday as the last day.
            tennis: Subscription {
                next_on: today,
                is_cancelled: true,
                ..subscription("sub-107", &NGUYEN, "Linh Nguyen", "Tennis", "Court 2", bought(today.day()))
            },
            // Expired ten days ago, paid for until yesterday.
            fencing: Subscription {
                next_on: today,
                expires_on: Some(today - Days::new(10)),
                ..subscription("sub-108", &NGUYEN, "An Nguyen", "Escrime", "Fleuret", bought(today.day()))
            },
            gym: subscription("sub-201", &FRASER, "Sam Fraser", "Gym, monthly", "Gym floor", bought(29)),
            judo: subscription("sub-202", &FRASER, "Ada Fraser", "Judo", "Judo, beginners", fixed(5)),
            spinning: subscription("sub-203", &SINGH, "Priya Singh", "Spinning", "Spin class", bought(8)),
            badminton: subscription("sub-204", &SINGH, "Arjun Singh", "Badminton", "Court 4", fixed(5)),
            rowing: subscription("sub-205", &LEBLANC, "Chloé LeBlanc", "Rowing", "Masters crew", bought(31)),
        }
    }

    pub fn subscriptions(&self) -> [&Subscription; 13] {
        [
            &self.swimming,
            &self.climbing,
            &self.gymnastics,
            &self.hockey,
            &self.dance,
            &self.yoga,
            &self.tennis,
            &self.fencing,
            &self.gym,
            &self.judo,
            &self.spinning,
            &self.badminton,
            &self.rowing,
        ]
    }

    /// The lines of a file for `offramp import`.
    pub fn documents(&self) -> Vec<Value> {
        let line = |collection: &str, document: Value| json!({ "collection": collection, "document": document });
        let mut lines = vec![line("organizations", erables()), line("organizations", harbour())];
        lines.extend(ACCOUNTS.map(|account| line("accounts", account.document(self.today))));
        lines.extend(self.subscriptions().map(|subscription| line("subscriptions", subscription.document())));
        lines
    }
}

fn erables() -> Value {
    json!({
        "_id": ERABLES.id,
        "name": "Centre sportif des Érables",
        "locale": "fr-CA",
        "timezone": ERABLES.timezone.name(),
        "contact": { "name": "Accueil", "email": ERABLES.contact },
        "client_cancellation": "immediate",
        "notify_client_of_own_actions": true,
        "card_notice_days": [30, 5],
        "admin_url": "https://admin.erables.example/abonnements/{subscription_id}",
        "brand": { "color": "#b3261e" },
    })
}

fn harbour() -> Value {
    json!({
        "_id": HARBOUR.id,
        "name": "Harbourside Athletic Club",
        "locale": "en-CA",
        "timezone": HARBOUR.timezone.name(),
        "contact": { "name": "Front desk", "email": HARBOUR.contact },
        "client_cancellation": "request",
        "admin_url": "https://admin.harbour.example/subscriptions/{subscription_id}",
        "brand": { "color": "#005f73" },
    })
}

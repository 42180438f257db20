//! The commands, and all their expected effects, computed in advance in a single thread.
//!
//! Five queues and three workers process commands in any order, so the plan consists of scenarios that do not depend on it. A
//! scenario is about one subscription and its account, and consists of rounds. The commands of a round commute, or wait for each other
//! in the retry queues. A round is published when the effects of the previous one have arrived, as by systems that react to events.

use std::collections::HashMap;
use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};
use chrono::{DateTime, Timelike, Utc};
use chrono_tz::Tz;
use fastrand::Rng;
use offramp::clock;
use offramp::store::documents::{AccountDocument, OrganizationDocument, SubscriptionDocument, read};
use offramp::store::outbox::entry::{Content, Lease, entries};
use offramp_domain::account::Account;
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::Command;
use offramp_domain::effect_id::conversation_id;
use offramp_domain::organization::Organization;
use offramp_domain::subscription::Subscription;
use offramp_domain::unit_of_work::{Task, TaskOutcome, UnitOfWork};
use serde_json::{Value, json};
use uuid::Uuid;

use offramp_testkit::fixtures::{account, command, organization, subscription, with};

/// The `source` of events: the worker's default.
const SOURCE: &str = "offramp";
/// The percentage of commands that are published twice.
const TWICE_PERCENT: u32 = 10;
/// How often every lane gets a command to reject, so that recoveries can be measured.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How long the probes continue after the last scenario has started, unless the faults end before. The last fault may take that long.
const PROBE_LONGER: Duration = Duration::from_secs(300);

/// All commands and their expected effects.
pub struct Plan {
    pub documents: Vec<(&'static str, Document)>,
    pub scenarios: Vec<Scenario>,
    pub commands: Vec<Planned>,
    pub effects: HashMap<Uuid, Effect>,
    /// The documents after all commands.
    pub unit_of_work: UnitOfWork,
}

/// Commands about one subscription and its account.
pub struct Scenario {
    /// When the first round is published.
    pub begins: Duration,
    /// Whether it is only needed while there are faults.
    pub is_probe: bool,
    /// Indexes into [`Plan::commands`], by round.
    pub rounds: Vec<Vec<usize>>,
}

/// One command.
pub struct Planned {
    /// The `id` of the command.
    pub id: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    /// Whether it is published a second time.
    pub twice: bool,
    /// The emails and events that it causes.
    pub effects: Vec<Uuid>,
    /// Whether it becomes a dead letter.
    pub dies: bool,
    /// Whether it is recorded in its document.
    pub is_applied: bool,
}

/// An email or an event that must be sent.
pub struct Effect {
    /// The command that causes it.
    pub command: usize,
    /// The conversation of an email.
    pub conversation_id: Uuid,
    pub content: Content,
}

/// Tells a scenario.
type Build = fn(&mut ScenarioBuilder);

/// The kinds of scenarios, each with its percentage.
const KINDS: [(usize, Build); 11] = [
    (16, cancelled_by_admin),
    (10, moved_earlier),
    (12, cancelled_by_client),
    (14, declined_then_accepted),
    (8, decided_before_asked),
    (10, removed),
    (10, payments_fail),
    (10, cards_expire),
    (6, refused),
    (2, unreadable),
    (2, corrupt),
];

impl Plan {
    /// A plan with at least `commands` commands, and the probes of the lanes. Its scenarios start within `period`.
    pub fn new(seed: u64, commands: usize, period: Duration) -> Self {
        let mut rng = Rng::with_seed(seed);
        let now = clock::now();
        let timezone = far_from_midnight(now);
        let mut plan = Self {
            documents: vec![],
            scenarios: vec![],
            commands: vec![],
            effects: HashMap::new(),
            unit_of_work: UnitOfWork::default(),
        };
        for (id, policy) in [("immediate", "immediate"), ("asks", "request")] {
            let mut document = organization(id);
            document.insert("timezone", timezone.name());
            document.insert("client_cancellation", policy);
            document.insert("notify_client_of_own_actions", id == "asks");
            let loaded = read::<OrganizationDocument, Organization>("organizations", &raw(&document));
            plan.unit_of_work.add_organization(id.try_into().unwrap(), loaded);
            plan.documents.push(("organizations", document));
        }
        let kinds: Vec<Build> = KINDS.iter().flat_map(|(share, kind)| std::iter::repeat_n(*kind, *share)).collect();
        while plan.commands.len() < commands {
            let mut scenario = ScenarioBuilder::new(plan.scenarios.len(), &mut rng);
            kinds[scenario.rng.usize(..kinds.len())](&mut scenario);
            plan.add(scenario, now);
        }
        let scenarios = u32::try_from(plan.scenarios.len()).unwrap();
        for (index, scenario) in (0..).zip(&mut plan.scenarios) {
            scenario.begins = period * index / scenarios;
        }
        let probes = (period + PROBE_LONGER).as_millis() / PROBE_EVERY.as_millis();
        for index in 0..u32::try_from(probes).unwrap() {
            let mut scenario = ScenarioBuilder::new(plan.scenarios.len(), &mut rng);
            probe(&mut scenario);
            plan.add(scenario, now);
            let scenario = plan.scenarios.last_mut().unwrap();
            (scenario.begins, scenario.is_probe) = (PROBE_EVERY * index, true);
        }
        plan.scenarios.sort_by_key(|scenario| scenario.begins);
        plan
    }

    fn add(&mut self, scenario: ScenarioBuilder<'_>, now: DateTime<Utc>) {
        let ScenarioBuilder { subscription, account, rounds, rng, .. } = scenario;
        let (subscription_id, account_id) = (id_of(&subscription), id_of(&account));
        let loaded = read::<SubscriptionDocument, Subscription>("subscriptions", &raw(&subscription));
        self.unit_of_work.add_subscription(subscription_id.as_str().try_into().unwrap(), loaded);
        let loaded = read::<AccountDocument, Account>("accounts", &raw(&account));
        self.unit_of_work.add_account(account_id.as_str().try_into().unwrap(), loaded);
        self.documents.push(("subscriptions", subscription));
        self.documents.push(("accounts", account));

        let mut scenario = Scenario { begins: Duration::ZERO, is_probe: false, rounds: vec![] };
        for round in rounds {
            let mut indexes = Vec::new();
            for body in round {
                indexes.push(self.commands.len());
                let planned = self.decide(&body, rng.u32(..100) < TWICE_PERCENT, now);
                self.commands.push(planned);
            }
            // Decided in the order of the scenario, published in any order.
            rng.shuffle(&mut indexes);
            scenario.rounds.push(indexes);
        }
        self.scenarios.push(scenario);
    }

    /// Applies one command, and collects its effects.
    fn decide(&mut self, body: &Value, twice: bool, now: DateTime<Utc>) -> Planned {
        let index = self.commands.len();
        let mut planned = Planned {
            id: body["id"].as_str().unwrap().to_owned(),
            routing_key: body["type"].as_str().unwrap().to_owned(),
            body: body.to_string().into_bytes(),
            twice,
            effects: vec![],
            dies: false,
            is_applied: false,
        };
        let Ok(command) = Command::parse(&planned.body) else {
            planned.dies = true;
            return planned;
        };
        let contents: Vec<(Uuid, Content)> = match self.unit_of_work.apply(&Task::Command(command.clone()), now) {
            TaskOutcome::Applied => {
                planned.is_applied = true;
                self.newest_entries(&command, now)
            }
            TaskOutcome::Unchanged | TaskOutcome::Repeated => {
                planned.is_applied = true;
                vec![]
            }
            TaskOutcome::Rejected(rejected) => {
                let event = CloudEvent::of_rejection(&command, &rejected, SOURCE, now);
                vec![(event.id.parse().unwrap(), Content::Event(event))]
            }
            TaskOutcome::Corrupt(_) => {
                planned.dies = true;
                vec![]
            }
            TaskOutcome::Missing(missing) => unreachable!("a scenario lacks its {missing:?}"),
        };
        let conversation_id = conversation_id(command.target().collection(), command.target().as_str());
        for (id, content) in contents {
            planned.effects.push(id);
            let earlier = self.effects.insert(id, Effect { command: index, conversation_id, content });
            assert!(earlier.is_none(), "two effects have the same id");
        }
        planned
    }

    /// The outbox entries of the command that was applied last.
    fn newest_entries(&self, command: &Command, now: DateTime<Utc>) -> Vec<(Uuid, Content)> {
        let lease = Lease { holder: Uuid::nil(), until: now };
        let effects = self.unit_of_work.newest_effects(command.target()).unwrap().clone();
        let entries = entries(effects, &lease, SOURCE, now);
        entries.into_iter().map(|entry| (entry.id.parse().unwrap(), entry.content)).collect()
    }
}

/// A time zone where it is far from midnight, because "today" must not change during the run.
fn far_from_midnight(now: DateTime<Utc>) -> Tz {
    let zones = [chrono_tz::America::Toronto, chrono_tz::Europe::Paris, chrono_tz::Asia::Tokyo];
    zones.into_iter().min_by_key(|zone| now.with_timezone(zone).hour().abs_diff(12)).unwrap()
}

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

fn id_of(document: &Document) -> String {
    document.get_str("_id").unwrap().to_owned()
}

/// Builds a scenario.
struct ScenarioBuilder<'a> {
    number: usize,
    organization: &'static str,
    subscription: Document,
    account: Document,
    rounds: Vec<Vec<Value>>,
    commands: usize,
    rng: &'a mut Rng,
}

impl<'a> ScenarioBuilder<'a> {
    fn new(number: usize, rng: &'a mut Rng) -> Self {
        let organization = if rng.bool() { "immediate" } else { "asks" };
        let (id, account_id) = (format!("sub-{number}"), format!("acc-{number}"));
        let mut subscription = subscription(&id, organization, &account_id);
        subscription.insert("participant", doc! { "id": "p", "name": format!("Participant {number}") });
        let mut account = account(&account_id, organization);
        let locale = ["fr-CA", "en-CA", "es-MX"][rng.usize(..3)];
        account.get_document_mut("manager").unwrap().insert("locale", locale);
        for document in [&mut subscription, &mut account] {
            // A field of another system, which the worker does not know.
            document.insert("crm", doc! { "number": i64::try_from(number).unwrap() });
        }
        Self { number, organization, subscription, account, rounds: vec![], commands: 0, rng }
    }

    fn round(&mut self, commands: impl IntoIterator<Item = Value>) {
        self.rounds.push(commands.into_iter().collect());
    }

    /// A command for the subscription, by an admin.
    fn command(&mut self, kind: &str, fields: Value) -> Value {
        let mut data =
            json!({ "organization_id": self.organization, "subscription_id": format!("sub-{}", self.number) });
        if kind != "payment.failure" {
            data["actor"] = json!({ "role": "admin", "id": "admin-1", "name": "Paul" });
        }
        let Value::Object(fields) = fields else { unreachable!() };
        data.as_object_mut().unwrap().extend(fields);
        self.envelope(kind, data)
    }

    fn envelope(&mut self, kind: &str, data: Value) -> Value {
        self.commands += 1;
        command(&format!("c-{}-{}", self.number, self.commands), kind, data)
    }

    fn client(&self) -> Value {
        json!({ "role": "client", "account_id": format!("acc-{}", self.number), "name": "Ada Roy" })
    }

    fn purchases(&mut self, month: Option<&str>) -> Value {
        let fields = match month {
            Some(month) => json!({ "via": "purchases", "month": month }),
            None => json!({ "via": "purchases", "reason": "Déménagement" }),
        };
        self.command("subscription.cancellation", fields)
    }

    fn invoice(&mut self, invoice: &str) -> Value {
        self.command("subscription.cancellation", json!({ "via": "invoice", "invoice_id": invoice, "refund": true }))
    }

    fn by_client(&mut self) -> Value {
        let actor = self.client();
        self.command("subscription.cancellation", json!({ "via": "account", "actor": actor }))
    }

    fn request(&mut self) -> Value {
        let actor = self.client();
        self.command("subscription.cancellation-request", json!({ "actor": actor, "reason": "trop loin" }))
    }

    fn confirmation(&mut self, fields: Value) -> Value {
        self.command("subscription.cancellation-confirmation", fields)
    }

    fn accept(&mut self) -> Value {
        self.confirmation(json!({ "decision": "accept", "final_billing_date": "2199-07-15" }))
    }

    fn payment_failure(&mut self, attempt: u32) -> Value {
        self.command(
            "payment.failure",
            json!({
                "invoice_id": "inv-5", "amount": { "value": "49.99", "currency": "CAD" },
                "card": { "brand": "Visa", "last4": "4242" }, "attempt": attempt, "next_attempt_on": "2199-06-18",
            }),
        )
    }

    fn payment_failures(&mut self) -> Vec<Value> {
        (1..=self.rng.u32(1..=3)).map(|attempt| self.payment_failure(attempt)).collect()
    }

    fn card_expiry(&mut self, card: u32) -> Value {
        let data = json!({
            "organization_id": self.organization, "account_id": format!("acc-{}", self.number),
            "card": { "id": format!("card-{card}"), "brand": "Visa", "last4": "4242", "expires": "2199-06" },
        });
        self.envelope("card.expiry", data)
    }
}

fn cancelled_by_admin(scenario: &mut ScenarioBuilder) {
    let first = scenario.purchases(Some("2199-08"));
    scenario.round([first]);
    let (again, later) = (scenario.purchases(Some("2199-08")), scenario.purchases(Some("2199-09")));
    let failures = scenario.payment_failures();
    scenario.round([again, later].into_iter().chain(failures));
}

fn moved_earlier(scenario: &mut ScenarioBuilder) {
    let first = scenario.purchases(Some("2199-09"));
    scenario.round([first]);
    let earlier = scenario.purchases(None);
    scenario.round([earlier]);
    let asked_too_late = scenario.request();
    scenario.round([asked_too_late]);
}

fn cancelled_by_client(scenario: &mut ScenarioBuilder) {
    if scenario.organization == "immediate" {
        let now = scenario.by_client();
        scenario.round([now]);
        let failures = scenario.payment_failures();
        scenario.round(failures);
    } else {
        let not_here = scenario.by_client();
        scenario.round([not_here]);
        let ask = scenario.request();
        scenario.round([ask]);
    }
}

fn declined_then_accepted(scenario: &mut ScenarioBuilder) {
    let (ask, failures) = (scenario.request(), scenario.payment_failures());
    scenario.round(failures.into_iter().chain([ask]));
    let decline = scenario.confirmation(json!({ "decision": "decline", "note": "Restez encore un peu." }));
    let failure = scenario.payment_failure(4);
    scenario.round([decline, failure]);
    let ask = scenario.request();
    scenario.round([ask]);
    let accept = scenario.accept();
    scenario.round([accept]);
}

/// The decision may overtake the request. It then waits in a retry queue.
fn decided_before_asked(scenario: &mut ScenarioBuilder) {
    let (ask, accept) = (scenario.request(), scenario.accept());
    scenario.round([ask, accept]);
}

fn removed(scenario: &mut ScenarioBuilder) {
    let first = scenario.invoice("inv-5");
    scenario.round([first]);
    let (failure, again) = (scenario.payment_failure(1), scenario.purchases(None));
    scenario.round([failure, again]);
}

fn payments_fail(scenario: &mut ScenarioBuilder) {
    let failures = scenario.payment_failures();
    scenario.round(failures);
    let failures = scenario.payment_failures();
    scenario.round(failures);
}

fn cards_expire(scenario: &mut ScenarioBuilder) {
    let cards: Vec<Value> = (1..=scenario.rng.u32(1..=4)).map(|card| scenario.card_expiry(card)).collect();
    scenario.round(cards);
    let again = scenario.card_expiry(1);
    scenario.round([again]);
}

fn refused(scenario: &mut ScenarioBuilder) {
    let client = scenario.client();
    let forbidden = with(scenario.purchases(None), "actor", client);
    let foreign = with(scenario.request(), "organization_id", json!("elsewhere"));
    let (invoiced, wrong_invoice) = (scenario.purchases(Some("2199-05")), scenario.invoice("inv-4"));
    let foreign_failure = with(scenario.payment_failure(1), "organization_id", json!("elsewhere"));
    scenario.round([forbidden, foreign, invoiced, wrong_invoice, foreign_failure]);
}

/// A command for every lane, with a foreign organization, so that it is rejected.
fn probe(scenario: &mut ScenarioBuilder) {
    let commands = [
        scenario.purchases(None),
        scenario.request(),
        scenario.accept(),
        scenario.payment_failure(1),
        scenario.card_expiry(1),
    ];
    scenario.round(commands.map(|command| with(command, "organization_id", json!("elsewhere"))));
}

/// A misspelt field makes the command invalid.
fn unreadable(scenario: &mut ScenarioBuilder) {
    let misspelt = with(scenario.purchases(None), "mnoth", json!("2199-08"));
    scenario.round([misspelt]);
}

fn corrupt(scenario: &mut ScenarioBuilder) {
    scenario.subscription.get_document_mut("billing").unwrap().insert("day", "fifteen");
    let never = scenario.purchases(None);
    scenario.round([never]);
}

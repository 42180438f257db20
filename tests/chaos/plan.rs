//! What upstream systems will ask, and all that must come of it: decided beforehand, by one fold in one thread.
//!
//! Five queues and three workers handle commands in any order, so a plan is made of stories that do not depend on it. A
//! story is about one subscription and its account, and goes in rounds: the commands of a round commute, or wait for one
//! another in the retry queues; a round is published when the effects of the one before have been seen, as by systems
//! that react to one another.

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
/// How many commands are published twice, of a hundred.
const TWICE_PERCENT: u32 = 10;
/// How often every lane gets a command to refuse, so that none has an excuse for standing still.
const PULSE_EVERY: Duration = Duration::from_millis(500);
/// How long the pulse goes on when all other stories have begun: the last fault may take that long.
const PULSE_LONGER: Duration = Duration::from_secs(15);

/// Everything that will be asked, and what the fold makes of it.
pub struct Plan {
    pub documents: Vec<(&'static str, Document)>,
    pub stories: Vec<Story>,
    pub commands: Vec<Planned>,
    pub effects: HashMap<Uuid, Effect>,
    /// The documents after all commands.
    pub unit_of_work: UnitOfWork,
}

/// Commands about one subscription and its account.
pub struct Story {
    /// When its first round is published.
    pub begins: Duration,
    /// Places in [`Plan::commands`], round by round.
    pub rounds: Vec<Vec<usize>>,
}

/// One command.
pub struct Planned {
    pub routing_key: String,
    pub body: Vec<u8>,
    /// Whether it is published a second time.
    pub twice: bool,
    /// The emails and events that it causes.
    pub effects: Vec<Uuid>,
    /// Whether it ends among the dead letters.
    pub dies: bool,
}

/// An email or an event that must leave.
pub struct Effect {
    /// The command that causes it.
    pub command: usize,
    /// The conversation that it belongs to, if it is an email.
    pub conversation_id: Uuid,
    pub content: Content,
}

/// Tells a story.
type Tell = fn(&mut Scene);

/// The kinds of stories, each with how many there are of it in a hundred.
const KINDS: [(usize, Tell); 11] = [
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
    /// A plan of at least `commands` commands, and the pulse of the lanes. Its stories begin within `period`.
    pub fn new(seed: u64, commands: usize, period: Duration) -> Self {
        let mut rng = Rng::with_seed(seed);
        let now = clock::now();
        let timezone = far_from_midnight(now);
        let mut plan = Self {
            documents: vec![],
            stories: vec![],
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
        let kinds: Vec<Tell> = KINDS.iter().flat_map(|(share, kind)| std::iter::repeat_n(*kind, *share)).collect();
        while plan.commands.len() < commands {
            let mut scene = Scene::new(plan.stories.len(), &mut rng);
            kinds[scene.rng.usize(..kinds.len())](&mut scene);
            plan.add(scene, now);
        }
        let stories = u32::try_from(plan.stories.len()).unwrap();
        for (index, story) in (0..).zip(&mut plan.stories) {
            story.begins = period * index / stories;
        }
        let pulses = (period + PULSE_LONGER).as_millis() / PULSE_EVERY.as_millis();
        for index in 0..u32::try_from(pulses).unwrap() {
            let mut scene = Scene::new(plan.stories.len(), &mut rng);
            pulse(&mut scene);
            plan.add(scene, now);
            plan.stories.last_mut().unwrap().begins = PULSE_EVERY * index;
        }
        plan.stories.sort_by_key(|story| story.begins);
        plan
    }

    fn add(&mut self, scene: Scene<'_>, now: DateTime<Utc>) {
        let Scene { subscription, account, rounds, rng, .. } = scene;
        let (subscription_id, account_id) = (id_of(&subscription), id_of(&account));
        let loaded = read::<SubscriptionDocument, Subscription>("subscriptions", &raw(&subscription));
        self.unit_of_work.add_subscription(subscription_id.as_str().try_into().unwrap(), loaded);
        let loaded = read::<AccountDocument, Account>("accounts", &raw(&account));
        self.unit_of_work.add_account(account_id.as_str().try_into().unwrap(), loaded);
        self.documents.push(("subscriptions", subscription));
        self.documents.push(("accounts", account));

        let mut story = Story { begins: Duration::ZERO, rounds: vec![] };
        for round in rounds {
            let mut indexes = Vec::new();
            for body in round {
                indexes.push(self.commands.len());
                let planned = self.decide(&body, rng.u32(..100) < TWICE_PERCENT, now);
                self.commands.push(planned);
            }
            // Decided in the order in which the story tells them; published in any.
            rng.shuffle(&mut indexes);
            story.rounds.push(indexes);
        }
        self.stories.push(story);
    }

    /// Folds one command, and keeps what it entails.
    fn decide(&mut self, body: &Value, twice: bool, now: DateTime<Utc>) -> Planned {
        let index = self.commands.len();
        let mut planned = Planned {
            routing_key: body["type"].as_str().unwrap().to_owned(),
            body: body.to_string().into_bytes(),
            twice,
            effects: vec![],
            dies: false,
        };
        let Ok(command) = Command::parse(&planned.body) else {
            planned.dies = true;
            return planned;
        };
        let contents: Vec<(Uuid, Content)> = match self.unit_of_work.apply(&Task::Command(command.clone()), now) {
            TaskOutcome::Applied => self.newest_entries(&command, now),
            TaskOutcome::Unchanged => vec![],
            TaskOutcome::Rejected(rejected) => {
                let event = CloudEvent::of_rejection(&command, &rejected, SOURCE, now);
                vec![(event.id.parse().unwrap(), Content::Event(event))]
            }
            TaskOutcome::Corrupt(_) => {
                planned.dies = true;
                vec![]
            }
            TaskOutcome::Missing(missing) => unreachable!("a story lacks its {missing:?}"),
        };
        let conversation_id = conversation_id(command.target().collection(), command.target().as_str());
        for (id, content) in contents {
            planned.effects.push(id);
            let earlier = self.effects.insert(id, Effect { command: index, conversation_id, content });
            assert!(earlier.is_none(), "two effects have the same id");
        }
        planned
    }

    /// What the command that was folded last has added to its document's outbox.
    fn newest_entries(&self, command: &Command, now: DateTime<Utc>) -> Vec<(Uuid, Content)> {
        let lease = Lease { holder: Uuid::nil(), until: now };
        let effects = self.unit_of_work.newest_effects(command.target()).unwrap().clone();
        let entries = entries(effects, &lease, SOURCE, now);
        entries.into_iter().map(|entry| (entry.id.parse().unwrap(), entry.content)).collect()
    }
}

/// Where it is nowhere near midnight: "today" must not change during the run.
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

/// A story while it is written.
struct Scene<'a> {
    number: usize,
    organization: &'static str,
    subscription: Document,
    account: Document,
    rounds: Vec<Vec<Value>>,
    commands: usize,
    rng: &'a mut Rng,
}

impl<'a> Scene<'a> {
    fn new(number: usize, rng: &'a mut Rng) -> Self {
        let organization = if rng.bool() { "immediate" } else { "asks" };
        let (id, account_id) = (format!("sub-{number}"), format!("acc-{number}"));
        let mut subscription = subscription(&id, organization, &account_id);
        subscription.insert("participant", doc! { "id": "p", "name": format!("Participant {number}") });
        let mut account = account(&account_id, organization);
        let locale = ["fr-CA", "en-CA", "es-MX"][rng.usize(..3)];
        account.get_document_mut("manager").unwrap().insert("locale", locale);
        for document in [&mut subscription, &mut account] {
            // Another system's field, of which the worker knows nothing.
            document.insert("crm", doc! { "number": i64::try_from(number).unwrap() });
        }
        Self { number, organization, subscription, account, rounds: vec![], commands: 0, rng }
    }

    fn round(&mut self, commands: impl IntoIterator<Item = Value>) {
        self.rounds.push(commands.into_iter().collect());
    }

    /// A command about the story's subscription, by an admin.
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

fn cancelled_by_admin(scene: &mut Scene) {
    let first = scene.purchases(Some("2199-08"));
    scene.round([first]);
    let (again, later) = (scene.purchases(Some("2199-08")), scene.purchases(Some("2199-09")));
    let failures = scene.payment_failures();
    scene.round([again, later].into_iter().chain(failures));
}

fn moved_earlier(scene: &mut Scene) {
    let first = scene.purchases(Some("2199-09"));
    scene.round([first]);
    let earlier = scene.purchases(None);
    scene.round([earlier]);
    let asked_too_late = scene.request();
    scene.round([asked_too_late]);
}

fn cancelled_by_client(scene: &mut Scene) {
    if scene.organization == "immediate" {
        let now = scene.by_client();
        scene.round([now]);
        let failures = scene.payment_failures();
        scene.round(failures);
    } else {
        let not_here = scene.by_client();
        scene.round([not_here]);
        let ask = scene.request();
        scene.round([ask]);
    }
}

fn declined_then_accepted(scene: &mut Scene) {
    let (ask, failures) = (scene.request(), scene.payment_failures());
    scene.round(failures.into_iter().chain([ask]));
    let decline = scene.confirmation(json!({ "decision": "decline", "note": "Restez encore un peu." }));
    let failure = scene.payment_failure(4);
    scene.round([decline, failure]);
    let ask = scene.request();
    scene.round([ask]);
    let accept = scene.accept();
    scene.round([accept]);
}

/// The decision may overtake the request; it then waits for it in a retry queue.
fn decided_before_asked(scene: &mut Scene) {
    let (ask, accept) = (scene.request(), scene.accept());
    scene.round([ask, accept]);
}

fn removed(scene: &mut Scene) {
    let first = scene.invoice("inv-5");
    scene.round([first]);
    let (failure, again) = (scene.payment_failure(1), scene.purchases(None));
    scene.round([failure, again]);
}

fn payments_fail(scene: &mut Scene) {
    let failures = scene.payment_failures();
    scene.round(failures);
    let failures = scene.payment_failures();
    scene.round(failures);
}

fn cards_expire(scene: &mut Scene) {
    let cards: Vec<Value> = (1..=scene.rng.u32(1..=4)).map(|card| scene.card_expiry(card)).collect();
    scene.round(cards);
    let again = scene.card_expiry(1);
    scene.round([again]);
}

fn refused(scene: &mut Scene) {
    let client = scene.client();
    let forbidden = with(scene.purchases(None), "actor", client);
    let foreign = with(scene.request(), "organization_id", json!("elsewhere"));
    let (invoiced, wrong_invoice) = (scene.purchases(Some("2199-05")), scene.invoice("inv-4"));
    let foreign_failure = with(scene.payment_failure(1), "organization_id", json!("elsewhere"));
    scene.round([forbidden, foreign, invoiced, wrong_invoice, foreign_failure]);
}

/// A command for every lane, in the name of an organization that has nothing to do with it.
fn pulse(scene: &mut Scene) {
    let commands =
        [scene.purchases(None), scene.request(), scene.accept(), scene.payment_failure(1), scene.card_expiry(1)];
    scene.round(commands.map(|command| with(command, "organization_id", json!("elsewhere"))));
}

/// A misspelt field: nothing may be made of it.
fn unreadable(scene: &mut Scene) {
    let misspelt = with(scene.purchases(None), "mnoth", json!("2199-08"));
    scene.round([misspelt]);
}

fn corrupt(scene: &mut Scene) {
    scene.subscription.get_document_mut("billing").unwrap().insert("day", "fifteen");
    let never = scene.purchases(None);
    scene.round([never]);
}

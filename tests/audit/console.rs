//! Uses `offramp console` like support staff and operators, on real servers: every page, every change, two operators at once, and a worker
//! that is killed meanwhile, with 100,000 subscriptions and 5,000 dead letters.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{DateTime as Instant, Document, doc};
use serde_json::{Value, json};

use crate::devtools::{Browser, Page, Scheme};
use crate::look::axe_findings;
use offramp_testkit::fixtures::{account, command, populate, subscription, with};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::web_process::{WebProcess, percent_encoded};
use offramp_testkit::worker_process::{WorkerProcess, offramp};
use offramp_testkit::{PATIENCE, eventually, say};

/// The windows: a desktop and a phone, in CSS pixels.
const WINDOWS: [(u32, u32); 2] = [(1280, 900), (375, 800)];
const SUBSCRIPTIONS: usize = 100_000;
const REQUESTS: usize = 300;
const DEAD_LETTERS: usize = 5_000;
const FAILED_EMAILS: usize = 40;
/// The longest that the server may take for a page, in milliseconds.
const SERVER_MILLISECONDS_MAX: f64 = 300.0;
/// The largest page, in bytes.
const PAGE_BYTES_MAX: f64 = 300.0 * 1024.0;
/// What nobody may be able to make the page do.
const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(1)> مرحبا supercalifragilisticexpialidocious-supercalifragilisticexpialidocious-supercalifragilisticexpialidocious";

/// An id that is allowed, and hostile.
const HOSTILE_ID: &str =
    "<script>alert(1)</script>\"'&?=/../مرحبا supercalifragilisticexpialidocious-supercalifragilisticexpialidocious";

/// Notes what a page must not do, from its first line on.
const WATCH: &str = "window.faults = [];
    window.alert = () => window.faults.push('a script of a document ran');
    document.addEventListener('securitypolicyviolation', (event) =>
        window.faults.push(`the policy forbids ${event.violatedDirective} ${event.blockedURI}`));
    window.addEventListener('error', (event) => window.faults.push(`error: ${event.message}`));";

/// What is measured of a page.
const MEASURED: &str = "(() => {
    const { serverTiming, decodedBodySize } = performance.getEntriesByType('navigation')[0];
    return [serverTiming[0]?.duration ?? -1, decodedBodySize, document.documentElement.scrollWidth > innerWidth,
        Math.max(0, ...[...document.querySelectorAll('table')].map((table) => table.rows.length))];
})()";

/// A person with a browser.
struct Visitor<'a> {
    page: Page,
    address: String,
    axe: &'a str,
    out: &'a Path,
    findings: Vec<String>,
    /// The time of the server in milliseconds and the size in bytes, of each page.
    measured: Vec<(String, f64, f64)>,
}

impl<'a> Visitor<'a> {
    async fn new(browser: &Browser, console: &WebProcess, axe: &'a str, out: &'a Path) -> Self {
        let page = browser.page().await;
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH })).await;
        page.resize(WINDOWS[0].0, WINDOWS[0].1, 1, false).await;
        let address = console.address.clone();
        Self { page, address, axe, out, findings: Vec::new(), measured: Vec::new() }
    }

    async fn open(&self, path: &str) {
        self.page.bring_to_front().await;
        self.page.open(&format!("http://{}{path}", self.address)).await;
    }

    /// Opens a page and looks at it closely.
    async fn look_at(&mut self, name: &str, path: &str) {
        self.open(path).await;
        self.look(name).await;
    }

    /// Looks closely at the page that is open.
    async fn look(&mut self, name: &str) {
        let [milliseconds, bytes, _, rows] = self.measure().await;
        self.measured.push((name.to_owned(), milliseconds, bytes));
        if !(0.0..=SERVER_MILLISECONDS_MAX).contains(&milliseconds) {
            self.findings.push(format!("the server took {milliseconds} ms\n{name}"));
        }
        if bytes > PAGE_BYTES_MAX || rows > 210.0 {
            self.findings.push(format!("{bytes} bytes, {rows} rows\n{name}"));
        }
        for (width, height) in WINDOWS {
            self.page.resize(width, height, 1, width < 600).await;
            for scheme in Scheme::ALL {
                self.page.emulate(scheme, "screen").await;
                self.page.evaluate(self.axe).await;
                let results = self.page.evaluate("axe.run(document, { iframes: false })").await;
                self.findings.extend(axe_findings(&results["violations"], scheme));
                self.picture(&format!("{name}-{width}-{}", scheme.as_str())).await;
            }
            if self.measure().await[2] > 0.0 {
                self.findings.push(format!("the page scrolls sideways\n{name} at {width} px"));
            }
        }
        self.page.emulate(Scheme::Light, "screen").await;
        self.page.resize(WINDOWS[0].0, WINDOWS[0].1, 1, false).await;
        let faults = self.page.evaluate("window.faults").await;
        let faults = faults.as_array().unwrap().iter().filter_map(Value::as_str);
        self.findings.extend(faults.map(|fault| format!("{fault}\n{name}")));
    }

    /// A picture of the page that is open.
    async fn picture(&self, name: &str) {
        fs::write(self.out.join(format!("{name}.png")), self.page.screenshot().await).unwrap();
    }

    async fn measure(&self) -> [f64; 4] {
        let measured = self.page.evaluate(MEASURED).await;
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| f64::from(u8::from(value == true)));
        [0, 1, 2, 3].map(|place| number(&measured[place]))
    }

    /// Clicks, and waits for the next page.
    async fn go(&self, selector: &str) {
        self.page.bring_to_front().await;
        self.page.evaluate("document.body.dataset.old = 'yes'").await;
        self.page.click(selector).await;
        let is_there = async || {
            let next = "document.readyState === 'complete' && document.body?.dataset.old !== 'yes'";
            self.page.evaluate(next).await == true
        };
        let clicked_at = std::time::Instant::now();
        while !is_there().await {
            if clicked_at.elapsed() > PATIENCE {
                self.picture("failure").await;
                panic!("a click on {selector} leads nowhere; see failure.png");
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
    }

    /// Waits for the end of the change whose page is open, without reloading it. Returns what it says.
    async fn end_of_change(&self) -> String {
        // A page that nobody sees does not refresh itself.
        self.page.bring_to_front().await;
        self.page.until("[...document.querySelectorAll('.badge')].some((badge) => ['done', 'incomplete', 'failed'].includes(badge.innerText))").await;
        self.text().await
    }

    async fn text(&self) -> String {
        self.page.evaluate("document.querySelector('main').innerText").await.as_str().unwrap().to_owned()
    }

    /// Checks the first boxes of a table.
    async fn check_boxes(&self, number: usize) {
        for place in 1..=number {
            self.page.click(&format!("tbody tr:nth-child({place}) input[type=checkbox]")).await;
        }
        let checked = self.page.evaluate("document.querySelectorAll('input[type=checkbox]:checked').length").await;
        assert_eq!(checked, number);
    }
}

/// Uses the console, writes screenshots to `out`, and returns findings. Panics on any other defect.
#[allow(clippy::too_many_lines, reason = "a scenario is easier to follow in one piece")]
pub async fn drive(browser: &Browser, axe: &str, out: &Path) -> Vec<String> {
    fs::create_dir_all(out).unwrap();
    let bed = TestBed::new("console-audit").await;
    assert!(offramp(&bed).arg("init").output().unwrap().status.success());
    seed(&bed).await;
    let accepts = Arc::new(AtomicBool::new(false));
    let sink = SmtpSink::scripted(Tls::No, {
        let accepts = Arc::clone(&accepts);
        move |step, _| match step {
            Step::Rcpt if !accepts.load(Ordering::Relaxed) => {
                Action::Answer("550 5.1.1 <client@home.example>: Recipient address rejected: User unknown")
            }
            _ => Action::Ok,
        }
    })
    .await;
    let mut worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_KEEP_EMAILS_DAYS", "30")]).await;
    publish(&bed).await;
    eventually("all dead letters and failed emails", || async {
        let failed = doc! { "outbox.failed_at": { "$exists": true } };
        let failed = bed.collection("subscriptions").count_documents(failed).await.unwrap();
        (worker.settled().await >= (DEAD_LETTERS + FAILED_EMAILS) as u64 && failed >= FAILED_EMAILS as u64)
            .then_some(())
    })
    .await;
    let worker_address = format!("127.0.0.1:{}", worker.port());
    let settings = [("OFFRAMP_CONSOLE_WORKERS", worker_address.as_str())];
    let console = WebProcess::console(&bed, &["--allow-changes"], &settings);
    let mut ann = Visitor::new(browser, &console, axe, out).await;
    // The first copy of the dead letters is made when somebody looks for the first time.
    ann.open("/dead-letters").await;

    say!("every page");
    ann.open("/").await;
    ann.page.until("document.querySelector('[data-live]').innerText.includes('ready') && document.querySelectorAll('polyline').length > 5").await;
    ann.look("overview").await;
    ann.look_at("requests", "/requests").await;
    ann.look_at("requests-old", "/requests?days=7&organization=org").await;
    ann.look_at("subscription", "/subscription?id=sub-0").await;
    ann.look_at("subscription-hostile", &format!("/subscription?id={}", percent_encoded(HOSTILE_ID))).await;
    ann.look_at("account", "/account?id=acc-0").await;
    ann.look_at("search-address", "/search?q=client0@home.example").await;
    ann.look_at("search-command", "/search?q=rejected-0").await;
    ann.look_at(
        "search-nothing",
        &format!("/search?q={}", percent_encoded(&HOSTILE.chars().take(150).collect::<String>())),
    )
    .await;
    ann.look_at("emails-failed", "/emails").await;
    ann.look_at("emails-filtered", "/emails?with=unknown").await;
    ann.look_at("emails-waiting", "/emails?state=waiting").await;
    ann.look_at("dead-letters", "/dead-letters").await;
    ann.go("tbody tr:first-child a").await;
    ann.look("dead-letter-group").await;
    ann.go("nav.pages a").await;
    ann.look("dead-letter-group-next").await;
    ann.go("tbody tr:first-child a").await;
    ann.look("dead-letter").await;
    ann.look_at("not-found", "/nothing").await;
    let token = [("OFFRAMP_CONSOLE_TOKEN", "0123456789abcdef")];
    let guarded = WebProcess::console(&bed, &[], &token);
    let mut stranger = Visitor::new(browser, &guarded, axe, out).await;
    stranger.look_at("login", "/emails").await;
    stranger.page.click("[name=name]").await;
    stranger.page.insert("Bob").await;
    stranger.page.click("[name=token]").await;
    stranger.page.insert("0123456789abcdef").await;
    stranger.go("form button").await;
    stranger.look("read-only").await;
    assert!(
        stranger.page.evaluate("document.querySelectorAll('main input[type=checkbox], main .danger').length").await
            == 0
    );
    ann.findings.append(&mut stranger.findings);
    ann.measured.append(&mut stranger.measured);

    say!("the keyboard");
    ann.open("/").await;
    let focused = async || {
        ann.page
            .evaluate(
                "document.activeElement.className || document.activeElement.innerText || document.activeElement.name",
            )
            .await
    };
    let mut order = Vec::new();
    for _ in 0..8 {
        for kind in ["keyDown", "keyUp"] {
            ann.page
                .call(
                    "Input.dispatchKeyEvent",
                    json!({ "type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 }),
                )
                .await;
        }
        order.push(focused().await.as_str().unwrap().to_owned());
    }
    assert_eq!(order[..7], ["skip", "Offramp", "Overview", "Requests", "Emails", "Dead letters", "q"], "{order:?}");

    say!("emails");
    ann.open("/emails").await;
    ann.go("tbody tr:first-child td:nth-child(2) a").await;
    ann.page.until("document.querySelector('iframe').getBoundingClientRect().height > 300").await;
    ann.look("email").await;
    ann.page.click("[name=address]").await;
    ann.page.insert("elsewhere@home.example").await;
    accepts.store(true, Ordering::Relaxed);
    ann.go("button[value=address-selected]").await;
    assert!(ann.end_of_change().await.contains("Due now: 1 email"));
    ann.look("change").await;
    ann.go("main > p:last-child a").await;
    ann.check_boxes(2).await;
    ann.go("button[value=readdress-selected]").await;
    assert!(ann.end_of_change().await.contains("Due now: 2 emails"));
    ann.open("/emails").await;
    ann.check_boxes(3).await;
    ann.go("button[value=drop-selected]").await;
    ann.look("confirmation").await;
    ann.go("button.danger").await;
    assert!(ann.end_of_change().await.contains("Dropped 3 emails"));
    ann.open("/emails").await;
    ann.go("button[value=retry-all]").await;
    assert!(ann.end_of_change().await.contains("done"));
    eventually("all emails", || async {
        let left = doc! { "outbox.failed_at": { "$exists": true } };
        (bed.collection("subscriptions").count_documents(left).await.unwrap() == 0).then_some(())
    })
    .await;
    ann.open("/subscription?id=sub-401").await;
    eventually("the sent email, kept", || async {
        ann.open("/subscription?id=sub-401").await;
        ann.page.evaluate("document.querySelector('.timeline a[href^=\"/emails/sent\"]') !== null").await == true
    })
    .await;
    ann.look("timeline").await;
    ann.go(".timeline a[href^=\"/emails/sent\"]").await;
    ann.look("sent-email").await;

    say!("requests");
    ann.open("/requests").await;
    ann.go("tbody tr:first-child a").await;
    ann.page.click("[name=note]").await;
    ann.page.insert("Au plaisir de vous revoir.").await;
    ann.go("button[value=accept]").await;
    let accepted = ann.end_of_change().await;
    assert!(accepted.contains("The last day of access is"), "{accepted}");
    ann.look("decision").await;
    ann.open("/requests").await;
    ann.go("tbody tr:first-child a").await;
    ann.go("button[value=decline]").await;
    assert!(ann.end_of_change().await.contains("done"));

    say!("dead letters, two operators at once");
    let bob = Visitor::new(browser, &console, axe, out).await;
    for operator in [&ann, &bob] {
        operator.open("/dead-letters").await;
        operator.go("tbody tr:first-child a").await;
    }
    // Looking locks nobody out.
    let listed = offramp(&bed).args(["dead-letters", "list"]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    for operator in [&ann, &bob] {
        operator.check_boxes(4).await;
        operator.go("button[value=drop-selected]").await;
    }
    ann.go("button.danger").await;
    bob.go("button.danger").await;
    let (first, second) = (ann.end_of_change().await, bob.end_of_change().await);
    let has_all = |text: &str| text.contains("Dropped 4 dead letters");
    assert!(has_all(&first) != has_all(&second), "one of them drops, the other is told: {first} {second}");
    let told = if has_all(&first) { &second } else { &first };
    assert!(told.contains("failed") && told.contains("no longer there"), "{told}");
    bob.picture("change-of-the-slower").await;

    say!("a worker is killed");
    ann.open("/").await;
    ann.page.until("document.querySelector('[data-live]').innerText.includes('ready')").await;
    worker.kill();
    // Without a reload.
    ann.page.until("document.querySelector('[data-live]').innerText.includes('silent')").await;
    ann.look("overview-silent").await;
    ann.open("/dead-letters").await;
    ann.go("tbody tr:first-child a").await;
    ann.go("button[value=replay-group]").await;
    ann.page
        .until("document.querySelector('progress') !== null || document.querySelector('.badge').innerText === 'done'")
        .await;
    let replayed = ann.end_of_change().await;
    assert!(replayed.contains("Sent back"), "{replayed}");
    let again = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("the replayed ones, dead again", || async { again.settled().await > 0 }).await;

    let mut measured = ann.measured;
    measured.sort_by(|one, other| other.1.total_cmp(&one.1));
    let mut slowest = String::new();
    for (name, milliseconds, bytes) in measured.iter().take(5) {
        write!(slowest, "\n  {milliseconds:6.1} ms  {:5.0} KB  {name}", bytes / 1024.0).unwrap();
    }
    println!("{} pages were looked at; the slowest:{slowest}", measured.len());
    assert_eq!(console.interrupt().await.code(), Some(0));
    assert_eq!(again.stop().await.code(), Some(0));
    bed.remove().await;
    ann.findings
}

/// Subscriptions of 33,334 accounts, some with requests, and one whose every text is hostile.
async fn seed(bed: &TestBed) {
    say!("{SUBSCRIPTIONS} subscriptions");
    populate(bed).await;
    let names = ["Zoé Tremblay", "Émile Gagnon", "Julie Roy", "Marc Côté", "Inès Bouchard"];
    let accounts = (0..=SUBSCRIPTIONS / 3).map(|index| {
        let mut document = account(&format!("acc-{index}"), "org");
        let manager =
            doc! { "name": names[index % 5], "email": format!("client{index}@home.example"), "locale": "fr-CA" };
        document.insert("manager", manager);
        document
    });
    insert(bed, "accounts", accounts).await;
    let subscriptions = (0..SUBSCRIPTIONS).map(|index| {
        let mut document = subscription(&format!("sub-{index}"), "org", &format!("acc-{}", index / 3));
        if index < REQUESTS {
            requested(&mut document, index, "Nous déménageons à Sherbrooke en janvier.");
        }
        document
    });
    insert(bed, "subscriptions", subscriptions).await;
    let mut hostile = subscription(HOSTILE_ID, "org", "acc-0");
    hostile.insert("participant", doc! { "id": HOSTILE_ID, "name": HOSTILE });
    requested(&mut hostile, REQUESTS, HOSTILE);
    insert(bed, "subscriptions", std::iter::once(hostile)).await;
}

fn requested(document: &mut Document, hours: usize, reason: &str) {
    let at = Instant::from_millis(Instant::now().timestamp_millis() - i64::try_from(hours).unwrap() * 3_600_000);
    let actor = doc! { "role": "client", "account_id": "acc", "name": reason.chars().take(40).collect::<String>() };
    document.insert("status", "cancellation_requested");
    document.insert("cancellation_request", doc! { "requested_at": at, "actor": &actor, "reason": reason });
    let change = doc! { "at": at, "from": "active", "to": "cancellation_requested", "actor": actor, "reason": reason };
    document.insert("history", [change]);
}

async fn insert(bed: &TestBed, collection: &str, documents: impl Iterator<Item = Document>) {
    let mut documents = documents.peekable();
    while documents.peek().is_some() {
        let batch: Vec<Document> = documents.by_ref().take(5_000).collect();
        bed.collection(collection).insert_many(batch).await.unwrap();
    }
}

/// Commands that become dead letters, that are rejected, and whose emails fail.
async fn publish(bed: &TestBed) {
    say!("{DEAD_LETTERS} dead letters");
    for index in 0..DEAD_LETTERS {
        let id = format!("wrong-{index}");
        let data = json!({ "organization_id": "org", "subscription_id": format!("sub-{index}") });
        let wrong = match index % 5 {
            0 | 1 => command(&id, "subscription.cancellation", data),
            2 => with(command(&id, "subscription.cancellation", data), "mounth", json!("2027-01")),
            3 => with(command(&id, "payment.failure", data), "amount", json!("49.99")),
            _ => json!({ "hello": HOSTILE, "id": id }),
        };
        bed.publish("subscription.cancellation", wrong.to_string().as_bytes()).await;
    }
    for index in 0..FAILED_EMAILS {
        let card = json!({ "brand": "Visa", "last4": "4242" });
        let data = json!({ "organization_id": "org", "subscription_id": format!("sub-{}", 400 + index), "invoice_id": "invoice",
            "amount": { "value": "49.99", "currency": "CAD" }, "card": card, "attempt": 2, "failure_code": "insufficient_funds",
            "failure_message": HOSTILE });
        bed.command(&command(&format!("failure-{index}"), "payment.failure", data)).await;
    }
    let rejected = json!({ "organization_id": "org", "subscription_id": "sub-0", "via": "purchases", "month": "2001-01",
        "actor": { "role": "admin", "id": "ann", "name": HOSTILE.chars().take(90).collect::<String>() }, "reason": HOSTILE });
    bed.command(&command("rejected-0", "subscription.cancellation", rejected)).await;
}

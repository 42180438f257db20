//! A person with a browser, and what is checked of every page that they look at.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::devtools::{Browser, Page, Scheme};
use crate::look::axe_findings;
use offramp_testkit::web_process::WebProcess;
use offramp_testkit::{PATIENCE, eventually, say};

/// The windows: a desktop and a phone, in CSS pixels.
const WINDOWS: [(u32, u32); 2] = [(1280, 900), (375, 800)];
/// The longest that the server may take for an answer, in milliseconds.
const SERVER_MILLISECONDS_MAX: f64 = 300.0;
/// The largest page, in bytes.
const PAGE_BYTES_MAX: f64 = 300.0 * 1024.0;
/// The largest table, with its head.
const ROWS_MAX: f64 = 101.0;
/// How often a click's consequence is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Notes what a page must not do, from its first line on.
const WATCH: &str = "window.faults = [];
    window.alert = () => window.faults.push('a script of a document ran');
    document.addEventListener('securitypolicyviolation', (event) =>
        window.faults.push(`the policy forbids ${event.violatedDirective} ${event.blockedURI}`));
    window.addEventListener('error', (event) => window.faults.push(`error: ${event.message}`));";

/// The server's time for the page or the slowest of its parts, the page's size and width, and its largest table.
const MEASURED: &str = "(() => {
    const parts = ['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind));
    const times = parts.map((part) => part.serverTiming[0]?.duration ?? -1);
    return [parts[0].serverTiming.length ? Math.max(...times) : -1, parts[0].decodedBodySize,
        document.documentElement.scrollWidth,
        Math.max(0, ...[...document.querySelectorAll('table')].map((table) => table.rows.length))];
})()";

/// What every visitor needs.
pub struct Setting<'a> {
    pub browser: &'a Browser,
    pub axe: &'a str,
    pub out: &'a Path,
}

/// The figures of a page.
pub struct Measured {
    pub name: String,
    pub milliseconds: f64,
    pub bytes: f64,
}

pub struct Visitor<'a> {
    pub page: Page,
    address: String,
    axe: &'a str,
    out: &'a Path,
    /// What the browser complained about.
    complaints: Arc<Mutex<Vec<String>>>,
    /// Prints no findings.
    pub is_quiet: bool,
    pub findings: Vec<String>,
    pub measured: Vec<Measured>,
}

impl<'a> Visitor<'a> {
    pub async fn new(setting: &Setting<'a>, console: &WebProcess) -> Self {
        let Setting { browser, axe, out } = *setting;
        let page = browser.page().await;
        let complaints = page.complaints().await;
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH })).await;
        // Otherwise only the newest tab has the focus.
        page.call("Emulation.setFocusEmulationEnabled", json!({ "enabled": true })).await;
        page.resize(WINDOWS[0].0, WINDOWS[0].1, 1, false).await;
        let address = console.address.clone();
        Self { page, address, axe, out, complaints, is_quiet: false, findings: Vec::new(), measured: Vec::new() }
    }

    pub async fn open(&self, path: &str) {
        self.page.open(&format!("http://{}{path}", self.address)).await;
    }

    /// Opens a page and looks at it closely.
    pub async fn look_at(&mut self, name: &str, path: &str) {
        self.open(path).await;
        self.look(name).await;
    }

    /// Looks closely at the page that is open.
    pub async fn look(&mut self, name: &str) {
        self.look_within(name, SERVER_MILLISECONDS_MAX).await;
    }

    /// [`Self::look`] with a limit of its own for the time of the server, in milliseconds.
    pub async fn look_within(&mut self, name: &str, milliseconds_max: f64) {
        let [milliseconds, bytes, _, rows] = self.measure().await;
        if milliseconds_max <= SERVER_MILLISECONDS_MAX {
            self.measured.push(Measured { name: name.to_owned(), milliseconds, bytes });
        }
        if !(0.0..=milliseconds_max).contains(&milliseconds) {
            self.finding(format!("the server took {milliseconds} ms"), name);
        }
        if bytes > PAGE_BYTES_MAX || rows > ROWS_MAX {
            self.finding(format!("{bytes} bytes, {rows} rows"), name);
        }
        for (width, height) in WINDOWS {
            self.page.resize(width, height, 1, width < 600).await;
            for scheme in Scheme::ALL {
                self.page.emulate(scheme, "screen").await;
                self.page.evaluate(self.axe).await;
                let results = self.page.evaluate("axe.run(document, { iframes: false })").await;
                for found in axe_findings(&results["violations"], scheme) {
                    self.finding(found, &format!("{name} at {width} px"));
                }
                self.picture(&format!("{name}-{width}-{}", scheme.as_str())).await;
            }
            // Not compared with `innerWidth`: phones widen the window to a page that is too wide.
            if self.measure().await[2] > f64::from(width) {
                self.finding("the page scrolls sideways".to_owned(), &format!("{name} at {width} px"));
            }
        }
        self.page.emulate(Scheme::Light, "screen").await;
        self.page.resize(WINDOWS[0].0, WINDOWS[0].1, 1, false).await;
        self.note_faults(name).await;
    }

    /// Adds what the page and the browser complained about to the findings.
    pub async fn note_faults(&mut self, name: &str) {
        let faults = self.page.evaluate("window.faults.splice(0)").await;
        let faults = faults.as_array().unwrap().iter().filter_map(Value::as_str).map(str::to_owned);
        let complaints = std::mem::take(&mut *self.complaints.lock().unwrap());
        for fault in faults.chain(complaints).collect::<Vec<_>>() {
            self.finding(fault, name);
        }
    }

    /// Adds a finding about a page, and prints it at once, in case that the audit ends early.
    fn finding(&mut self, what: String, name: &str) {
        if !self.is_quiet {
            say!("FOUND {what} ({name})");
        }
        let where_it_is = if what.contains('\n') { format!(" ({name})") } else { format!("\n{name}") };
        self.findings.push(what + &where_it_is);
    }

    /// A picture of the page that is open.
    pub async fn picture(&self, name: &str) {
        // A frame outside the window is not drawn.
        let draw = "new Promise((drawn) => {
            const frame = document.querySelector('iframe');
            frame?.scrollIntoView({ block: 'end' });
            setTimeout(drawn, frame ? 500 : 0);
        })";
        self.page.evaluate(draw).await;
        self.page.bring_to_front().await;
        fs::write(self.out.join(format!("{name}.png")), self.page.screenshot().await).unwrap();
    }

    async fn measure(&self) -> [f64; 4] {
        let measured = self.page.evaluate(MEASURED).await;
        [0, 1, 2, 3].map(|place| measured[place].as_f64().unwrap())
    }

    /// Clicks, and waits for the next page.
    pub async fn go(&self, selector: &str) {
        self.page.bring_to_front().await;
        self.mark().await;
        self.page.click(selector).await;
        self.arrive(selector).await;
    }

    /// Presses Enter, and waits for the next page.
    pub async fn enter(&self) {
        self.mark().await;
        self.page.press("Enter").await;
        self.arrive("Enter").await;
    }

    /// Marks the page that is open, which a reload would forget.
    pub async fn mark(&self) {
        self.page.evaluate("document.body.dataset.mark = 'here'").await;
    }

    pub async fn has_mark(&self) -> bool {
        self.page.evaluate("document.body?.dataset.mark === 'here'").await == true
    }

    async fn arrive(&self, by: &str) {
        let left_at = Instant::now();
        while self.has_mark().await || self.page.evaluate("document.readyState").await != "complete" {
            if left_at.elapsed() > PATIENCE {
                self.picture("failure").await;
                panic!("{by} leads nowhere; see failure.png");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for the end of the change whose page is open, without reloading it. Returns its badge and what it says.
    pub async fn end_of_change(&self) -> (String, String) {
        let badge = "document.querySelector('main .badge')?.innerText ?? ''";
        let badge = eventually("the end of a change", || async {
            let badge = self.page.evaluate(badge).await.as_str().unwrap().to_owned();
            ["done", "incomplete", "failed"].contains(&badge.as_str()).then_some(badge)
        })
        .await;
        (badge, self.text().await)
    }

    /// Waits for the end of a change that must be done entirely. Returns what it says.
    pub async fn done(&self) -> String {
        let (badge, text) = self.end_of_change().await;
        assert_eq!(badge, "done", "{text}");
        text
    }

    pub async fn text(&self) -> String {
        self.page.evaluate("document.querySelector('main').innerText").await.as_str().unwrap().to_owned()
    }

    pub async fn count(&self, selector: &str) -> u64 {
        self.page.evaluate(&format!("document.querySelectorAll(`{selector}`).length")).await.as_u64().unwrap()
    }

    /// Clicks into a field, and types.
    pub async fn fill(&self, field: &str, text: &str) {
        self.page.click(&format!("[name={field}]")).await;
        self.page.insert(text).await;
    }

    /// Checks the boxes of these rows, the first of which is 1.
    pub async fn check_rows(&self, rows: std::ops::RangeInclusive<usize>) {
        let number = rows.clone().count();
        for row in rows {
            self.page.click(&format!("tbody tr:nth-child({row}) input[type=checkbox]")).await;
        }
        assert_eq!(self.count("input[type=checkbox]:checked").await, number as u64);
    }
}

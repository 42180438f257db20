//! Checks of an email in Chromium: accessibility, width, requests and screenshots.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::devtools::{Answer, Browser, Page, Scheme};
use offramp_testkit::emails::Email;

/// The URL of the email. The host does not exist, and its requests are intercepted.
const URL: &str = "https://mail.invalid/";

/// The browser requests this by itself.
const FAVICON: &str = "https://mail.invalid/favicon.ico";

/// The window of the smallest phone.
pub const PHONE: (u32, u32) = (320, 640);
/// The pane of a desktop mail client.
pub const DESKTOP: (u32, u32) = (680, 600);
/// Widths in CSS pixels at which nothing may overflow, and whether to emulate a phone.
const WIDTHS: [(u32, bool); 3] = [(320, true), (600, true), (1280, false)];
/// The text width of letter paper with margins of 1 cm, in CSS pixels.
const PAPER_WIDTH: u32 = 739;

/// Disabled axe rules that do not apply to emails, with reasons.
const RULES_OFF: [(&str, &str); 2] = [
    ("landmark-one-main", "an email is an article inside the page of an email client, which has the main landmark"),
    ("region", "the page of an email client, not the email, has the landmarks around it"),
];

/// Replaces the logo, because the URL in the samples does not exist.
const LOGO: &str = "<svg xmlns='http://www.w3.org/2000/svg' width='240' height='96'>\
    <rect width='240' height='96' rx='12' fill='#ffffff'/>\
    <text x='120' y='62' font-size='40' font-family='sans-serif' fill='#20242a' text-anchor='middle'>Logo</text></svg>";

/// The result of the checks.
pub struct Looked {
    /// Defects, one sentence each.
    pub findings: Vec<String>,
    /// Inconclusive axe checks.
    pub doubts: Vec<String>,
    /// The visible text.
    pub text: String,
    /// The screenshots, in the order of [`SHOTS`].
    pub shots: Vec<PathBuf>,
}

/// The screenshots of every email.
pub const SHOTS: [(&str, (u32, u32), Scheme); 4] = [
    ("phone-light", PHONE, Scheme::Light),
    ("phone-dark", PHONE, Scheme::Dark),
    ("desktop-light", DESKTOP, Scheme::Light),
    ("desktop-dark", DESKTOP, Scheme::Dark),
];

/// Checks one email, and writes screenshots to `folder`.
pub async fn look(browser: &Browser, axe: &str, mail: &Email, folder: &Path) -> Looked {
    let page = browser.page().await;
    let asked_for = Arc::new(Mutex::new(Vec::new()));
    page.answer_requests({
        let html = mail.rendered.html.clone();
        let logo = mail.notification.facts.organization.logo_url.clone();
        let asked_for = Arc::clone(&asked_for);
        move |url| {
            if url == URL {
                Answer::Content("text/html; charset=utf-8", html.clone().into_bytes())
            } else if logo.as_deref() == Some(url) {
                Answer::Content("image/svg+xml", LOGO.into())
            } else if url == FAVICON {
                Answer::Nothing
            } else {
                asked_for.lock().unwrap().push(url.to_owned());
                Answer::Nothing
            }
        }
    })
    .await;
    page.open(URL).await;
    let mut findings = Vec::new();
    let mut doubts = Vec::new();

    for (width, mobile) in WIDTHS {
        page.resize(width, 800, 1, mobile).await;
        findings.extend(wider_than(&page, width).await.map(|what| format!("at {width} px: {what}")));
    }
    page.resize(PAPER_WIDTH, 800, 1, false).await;
    page.emulate(Scheme::Light, "print").await;
    findings.extend(wider_than(&page, PAPER_WIDTH).await.map(|what| format!("on paper: {what}")));

    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("paper.pdf"), page.pdf().await).unwrap();
    let mut shots = Vec::new();
    for (name, (width, height), scheme) in SHOTS {
        page.emulate(scheme, "screen").await;
        let on_phone = width == PHONE.0;
        page.resize(width, height, if on_phone { 2 } else { 1 }, on_phone).await;
        let shot = folder.join(format!("{name}.png"));
        fs::write(&shot, page.screenshot().await).unwrap();
        shots.push(shot);
    }

    page.evaluate(axe).await;
    page.resize(PHONE.0, PHONE.1, 1, true).await;
    for scheme in Scheme::ALL {
        page.emulate(scheme, "screen").await;
        let off: Vec<String> = RULES_OFF.iter().map(|(rule, _)| format!("'{rule}': {{ enabled: false }}")).collect();
        let results = page
            .evaluate(&format!(
                "axe.run(document, {{ resultTypes: ['violations', 'incomplete'], rules: {{ {} }} }})",
                off.join(", ")
            ))
            .await;
        assert!(!results["passes"].as_array().unwrap().is_empty(), "axe has checked nothing");
        findings.extend(axe_findings(&results["violations"], scheme));
        doubts.extend(axe_findings(&results["incomplete"], scheme));
    }
    let text = page.evaluate("document.body.innerText").await.as_str().unwrap().to_owned();
    page.close().await;
    findings.extend(asked_for.lock().unwrap().iter().map(|url| format!("asks for {url}")));
    Looked { findings, doubts, text, shots }
}

/// Reports elements wider than the window, which readers would have to scroll to or could not see.
async fn wider_than(page: &Page, width: u32) -> Option<String> {
    let found = page
        .evaluate(&format!(
            "(() => {{
                const wide = [...document.body.querySelectorAll('*')].filter((element) => {{
                    const box = element.getBoundingClientRect();
                    return box.width > 0 && box.height > 0 && (box.right > {width} + 0.5 || box.left < -0.5);
                }});
                const page = document.documentElement.scrollWidth;
                const names = wide.slice(-1).map((element) => element.outerHTML.slice(0, 120));
                return page > {width} || wide.length ? `wider than the window\\n${{page}} px; ${{names.join()}}` : '';
            }})()"
        ))
        .await;
    Some(found.as_str().unwrap().to_owned()).filter(|what| !what.is_empty())
}

/// Converts axe results to sentences.
pub fn axe_findings(results: &Value, scheme: Scheme) -> Vec<String> {
    let mut sentences = Vec::new();
    for rule in results.as_array().unwrap() {
        for node in rule["nodes"].as_array().unwrap() {
            let checks: Vec<&str> = ["any", "all", "none"]
                .iter()
                .flat_map(|kind| node[kind].as_array().into_iter().flatten())
                .filter_map(|check| check["message"].as_str())
                .collect();
            sentences.push(format!(
                "axe, {}: {} ({})\n{} {}",
                scheme.as_str(),
                rule["id"].as_str().unwrap(),
                rule["help"].as_str().unwrap(),
                node["html"].as_str().unwrap_or_default().chars().take(160).collect::<String>().replace('\n', " "),
                checks.join("; ").replace('\n', " ")
            ));
        }
    }
    sentences
}

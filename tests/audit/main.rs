//! `make mail-audit`: are the emails readable, accessible and not spam?
//!
//! Every sample email in every language is scored by SpamAssassin, rendered in Chromium (phone and desktop, light and dark, print), and
//! checked by axe-core. Every fact must be in both parts, and every link must lead somewhere. The audit then uses the page of
//! `offramp preview` like a person. It leaves screenshots under `target/mail-audit`. `make console-audit` uses `offramp console`
//! instead, which needs the servers and not SpamAssassin.
//!
//! Reading order: [`control`] (defects that must be found), [`look`] (one email in Chromium), [`spam`] (one email in SpamAssassin),
//! `offramp_testkit::emails` (checks without either, which `cargo test` runs too), [`preview`], [`console`], [`sheets`] (contact sheets of
//! screenshots), [`devtools`] (the protocol of Chromium).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use chrono::Utc;
use clap::Parser;
use futures_util::{FutureExt, StreamExt};
use offramp_mail::{EmailKind, Templates};

mod console;
mod control;
mod devtools;
mod look;
mod preview;
mod sheets;
mod spam;

use devtools::Browser;
use look::Looked;
use offramp_testkit::email_facts::missing_from;
use offramp_testkit::emails::{Email, every_email};
use spam::{SCORE_MAX, SpamFilter, Verdict};

/// The number of emails to audit concurrently.
const SIDE_BY_SIDE: usize = 3;

/// Are the emails readable, accessible and not spam? Run it with `make mail-audit`
#[derive(Parser)]
struct Arguments {
    /// The file axe.min.js of axe-core; without it, nothing is run
    #[arg(long)]
    axe: Option<PathBuf>,
    /// The Chromium executable
    #[arg(long, default_value = "chromium")]
    chromium: PathBuf,
    /// The spamd executable of SpamAssassin
    #[arg(long, default_value = "spamd")]
    spamd: PathBuf,
    /// The directory for screenshots
    #[arg(long, default_value = "target/mail-audit")]
    out: PathBuf,
    /// Only emails whose name contains this, such as fr-CA/payment-failed; `preview` for the preview page only, `console` for the
    /// console, which is left out otherwise
    #[arg(long)]
    only: Option<String>,
    /// Arguments of `cargo test`, ignored
    #[arg(hide = true, allow_hyphen_values = true, trailing_var_arg = true)]
    _ignored: Vec<String>,
}

/// The audit result of an email.
struct Audited {
    mail: Email,
    looked: Looked,
    verdict: Verdict,
    findings: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(axe) = &arguments.axe else {
        println!("audit: skipped, because it needs Chromium, spamd and axe-core; run `make mail-audit`");
        return ExitCode::SUCCESS;
    };
    let began = Instant::now();
    let axe = fs::read_to_string(axe).unwrap();
    if arguments.only.as_deref() == Some("console") {
        return audit_console(&arguments, &axe).await;
    }
    let templates = Templates::load(None).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut emails = every_email(&templates, Utc::now());
    // The words of a region differ little from those of its language: there, the commonest email of each kind is looked at.
    // `cargo test` checks all of them without a browser.
    let mut kinds = HashSet::new();
    emails.retain(|mail| {
        let kind = (mail.notification.locale.clone(), EmailKind::of(&mail.notification));
        kinds.insert(kind) || !mail.is_regional
    });
    emails.retain(|mail| arguments.only.as_ref().is_none_or(|only| mail.name.contains(only)));
    let with_preview = arguments.only.as_deref().is_none_or(|only| only == "preview");
    assert!(with_preview || !emails.is_empty(), "no email matches --only");
    drop(fs::remove_dir_all(&arguments.out));
    fs::create_dir_all(&arguments.out).unwrap();
    let out = arguments.out.canonicalize().unwrap();

    let filter = SpamFilter::start(&arguments.spamd, &out.join("spamd.log")).await;
    let browser = Browser::start(&arguments.chromium, &out.join("chromium.log")).await;
    control::prove(&filter, &browser, &axe, &out, &templates).await;
    let (filter_here, browser_here, axe_here, out_here) = (&filter, &browser, axe.as_str(), out.as_path());
    let audited: Vec<Audited> = futures_util::stream::iter(emails)
        .map(|mail| audit(filter_here, browser_here, axe_here, out_here, mail))
        .buffered(SIDE_BY_SIDE)
        .collect()
        .await;
    sheets::make(&browser, &audited, &out).await;
    let mut preview = vec![];
    if with_preview {
        let driven = AssertUnwindSafe(preview::drive(&browser, &axe, &out.join("preview"))).catch_unwind().await;
        preview = driven.unwrap_or_else(|_| vec!["the preview check failed, see above".to_owned()]);
    }

    print(&audited, &preview);
    let failed =
        audited.iter().filter(|audited| !audited.findings.is_empty()).count() + usize::from(!preview.is_empty());
    println!("\nScreenshots and emails: {} ({:.0} s)", out.join("index.html").display(), began.elapsed().as_secs_f64());
    println!("mail-audit: {} passed, {failed} failed", audited.len() + usize::from(with_preview) - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn audit_console(arguments: &Arguments, axe: &str) -> ExitCode {
    drop(fs::remove_dir_all(&arguments.out));
    fs::create_dir_all(&arguments.out).unwrap();
    let out = arguments.out.canonicalize().unwrap();
    let browser = Browser::start(&arguments.chromium, &out.join("chromium.log")).await;
    let began = Instant::now();
    let found = console::drive(&browser, axe, &out).await;
    let mut findings = Sentences::default();
    findings.add(&found, "the console");
    findings.print("Findings");
    println!("\nScreenshots: {} ({:.0} s)", out.display(), began.elapsed().as_secs_f64());
    println!("console-audit: {} findings", found.len());
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn audit(filter: &SpamFilter, browser: &Browser, axe: &str, out: &Path, mail: Email) -> Audited {
    let folder = out.join(&mail.name);
    let looked = look::look(browser, axe, &mail, &folder).await;
    fs::write(folder.join("mail.eml"), &mail.bytes).unwrap();
    let verdict = filter.judge(&mail.bytes);

    let mut findings = mail.findings();
    findings.extend(looked.findings.iter().cloned());
    let unseen = missing_from(&looked.text, &mail.notification).into_iter();
    findings.extend(unseen.map(|fact| format!("not visible in the browser: {fact}")));
    if verdict.score > SCORE_MAX {
        let rules: Vec<String> = verdict.rules.iter().map(|(rule, points)| format!("{rule} {points}")).collect();
        findings.push(format!("SpamAssassin score above {SCORE_MAX}\n{}", rules.join(", ")));
    }
    Audited { mail, looked, verdict, findings }
}

/// Prints one line per email, then each finding once.
fn print(audited: &[Audited], preview: &[String]) {
    if !audited.is_empty() {
        println!("\n{:<60} {:>7} {:>6} {:>9}", "email", "bytes", "spam", "findings");
    }
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    let (mut findings, mut doubts) = (Sentences::default(), Sentences::default());
    for Audited { mail, looked, verdict, findings: found } in audited {
        let bytes = mail.bytes.len();
        println!("{:<60} {bytes:>7} {:>6.2} {:>9}", mail.name, verdict.score, found.len());
        for (rule, points) in &verdict.rules {
            *rules.entry(format!("{rule} {points}")).or_default() += 1;
        }
        findings.add(found, &mail.name);
        doubts.add(&looked.doubts, &mail.name);
    }
    findings.add(preview, "the preview page");
    doubts.print("Inconclusive axe checks");
    findings.print("Findings");
    if audited.is_empty() {
        return;
    }
    let bytes = audited.iter().map(|audited| audited.mail.bytes.len()).max().unwrap_or_default();
    let score = audited.iter().map(|audited| audited.verdict.score).fold(f64::NEG_INFINITY, f64::max);
    println!("\n{} emails, at most {bytes} bytes and {score:.2} points", audited.len());
    println!("\nSpamAssassin rules that matched");
    for (rule, count) in rules {
        println!("  {rule}: {count} emails");
    }
}

/// Findings grouped by their first line, each with the rest of its first example and the names of the emails.
#[derive(Default)]
struct Sentences<'a>(BTreeMap<&'a str, (&'a str, Vec<&'a str>)>);

impl<'a> Sentences<'a> {
    fn add(&mut self, sentences: &'a [String], name: &'a str) {
        for sentence in sentences {
            let (what, example) = sentence.split_once('\n').unwrap_or((sentence, ""));
            self.0.entry(what).or_insert((example, vec![])).1.push(name);
        }
    }

    fn print(&self, title: &str) {
        if !self.0.is_empty() {
            println!("\n{title}");
        }
        for (what, (example, names)) in &self.0 {
            println!("  {what}: {} times, first in {}", names.len(), names[0]);
            if !example.is_empty() {
                println!("      {example}");
            }
        }
    }
}

//! `make mail-audit`: would we be glad to get these mails?
//!
//! Every sample mail in every language is shown in a real Chromium, on a phone and on a desk, light and dark and on paper,
//! and looked at by axe-core. Pictures of all of them stay under `target/mail-audit`, for people to look at.
//!
//! Reading order: [`look`] — one mail in Chromium; [`sheets`] — many pictures in one; [`devtools`] — how Chromium is
//! spoken to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use futures_util::StreamExt;
use offramp::mail::Templates;

mod devtools;
mod look;
mod sheets;
#[path = "../it/support/mod.rs"]
mod support;

use devtools::Browser;
use look::Looked;
use support::mails::{Mail, every_mail};

/// How many mails are looked at side by side.
const SIDE_BY_SIDE: usize = 3;

/// Would we be glad to get these mails? Run it with `make mail-audit`.
#[derive(Parser)]
struct Arguments {
    /// axe-core, the file axe.min.js; without it nothing is done
    #[arg(long)]
    axe: Option<PathBuf>,
    /// The browser
    #[arg(long, default_value = "chromium")]
    chromium: PathBuf,
    /// The server of SpamAssassin
    #[arg(long, default_value = "spamd")]
    spamd: PathBuf,
    /// Where the pictures go
    #[arg(long, default_value = "target/mail-audit")]
    out: PathBuf,
    /// Only mails whose name has this in it, such as fr-CA/payment-failed
    #[arg(long)]
    only: Option<String>,
    /// What `cargo test` passes on; it does not matter here
    #[arg(hide = true, allow_hyphen_values = true, trailing_var_arg = true)]
    _ignored: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(axe) = arguments.axe else {
        println!("audit: not run, because it needs Chromium and more; `make mail-audit` looks for them");
        return ExitCode::SUCCESS;
    };
    let began = Instant::now();
    let axe = fs::read_to_string(axe).unwrap();
    let templates = Templates::load(None).unwrap();
    let mut mails = every_mail(&templates, chrono::Utc::now());
    mails.retain(|mail| arguments.only.as_ref().is_none_or(|only| mail.name.contains(only)));
    drop(fs::remove_dir_all(&arguments.out));
    fs::create_dir_all(&arguments.out).unwrap();
    let out = arguments.out.canonicalize().unwrap();
    let browser = Browser::start(&arguments.chromium, &out.join("chromium.log")).await;

    let (browser_here, axe_here, out_here) = (&browser, &axe, &out);
    let looked: Vec<(&Mail, Looked)> = futures_util::stream::iter(&mails)
        .map(|mail| async move {
            let looked = look::look(browser_here, axe_here, mail, &out_here.join(&mail.name)).await;
            (mail, looked)
        })
        .buffered(SIDE_BY_SIDE)
        .collect()
        .await;

    let mut good = 0;
    let mut findings: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (mail, looked) in &looked {
        fs::write(out.join(&mail.name).join("mail.eml"), &mail.composed.bytes).unwrap();
        println!("{:<60} {:>6} bytes  {} findings", mail.name, mail.composed.bytes.len(), looked.findings.len());
        for finding in &looked.findings {
            findings.entry(finding).or_default().push(&mail.name);
        }
        for doubt in &looked.doubts {
            println!("    in doubt: {doubt}");
        }
        good += usize::from(looked.findings.is_empty());
    }
    for (finding, mails) in findings {
        println!("{finding}\n    {} mails, such as {}", mails.len(), mails[0]);
    }
    sheets::make(&browser, &looked, &out).await;
    println!("pictures: {}", out.display());
    println!("{:.0} s", began.elapsed().as_secs_f64());
    println!("mail-audit: {good} passed, {} failed", looked.len() - good);
    if good == looked.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! The control: an email with known defects, all of which the audit must find.

use std::fs;
use std::path::Path;

use chrono::Utc;
use offramp_mail::Templates;

use crate::devtools::Browser;
use crate::spam::SpamFilter;
use crate::{Audited, audit};
use offramp_testkit::emails::{bytes_at, every_email};

/// The GTUBE string, which SpamAssassin always treats as spam.
const TEXT: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";

/// Too wide only for phones and paper, low contrast only in dark mode, and with a tracking image.
const HTML: &str = "<!doctype html><html lang=en><title>x</title><meta name=viewport content=width=device-width><style>
    @media (prefers-color-scheme: dark) { p { background: #000; color: #222 } }
    @media print { p { width: 900px !important } }
    </style><body><p style='width: 330px'>Some words, and an <img src=https://pictures.invalid/dot.png></p>";

/// The beginnings of required findings.
const WRONG: [&str; 14] = [
    "the subject has 61 characters",
    "a double full stop in the text part",
    "a line of a person's text is not quoted",
    "it has 0 buttons instead of 1",
    "the text part does not say Participant",
    "the HTML part does not say Participant",
    "not visible in the browser: Participant",
    "it fetches https://pictures.invalid/dot.png",
    "asks for https://pictures.invalid/dot.png",
    "at 320 px: wider than the window",
    "on paper: wider than the window",
    "axe, light: image-alt",
    "axe, dark: color-contrast",
    "SpamAssassin score above 0.5",
];

/// The beginnings of findings that would be false.
const RIGHT: [&str; 3] = ["at 600 px", "at 1280 px", "axe, light: color-contrast"];

/// Audits the control email.
pub async fn prove(filter: &SpamFilter, browser: &Browser, axe: &str, out: &Path, templates: &Templates) {
    let mut mail = every_email(templates, Utc::now()).remove(0);
    "control".clone_into(&mut mail.name);
    mail.notification.facts.message = Some("Written by a person".to_owned());
    mail.rendered.subject = "x".repeat(61);
    mail.rendered.text = format!("{TEXT}\nTwo full stops..\nWritten by a person\n");
    HTML.clone_into(&mut mail.rendered.html);
    mail.bytes = bytes_at(Utc::now(), &mail.notification, &mail.rendered);
    let Audited { findings, .. } = audit(filter, browser, axe, out, mail).await;
    let is_found = |beginning: &str| findings.iter().any(|finding| finding.starts_with(beginning));
    for wrong in WRONG {
        assert!(is_found(wrong), "the audit misses: {wrong}. Findings:\n{findings:#?}");
    }
    for right in RIGHT {
        assert!(!is_found(right), "a false finding: {right}\n{findings:#?}");
    }
    fs::remove_dir_all(out.join("control")).unwrap();
}

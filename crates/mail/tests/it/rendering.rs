//! Every email in every language, and what holds for all of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use chrono::DateTime;
use offramp_domain::facts::PendingRequest;
use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_domain::schedule::pending_requests::LIST_BYTES_MAX;
use offramp_mail::samples::{Sample, samples};
use offramp_mail::{EmailKind, Origin, RenderedEmail, Sender, compose};
use uuid::Uuid;

use super::{built_in, sample};

const LOCALES: [&str; 3] = ["fr-CA", "en-CA", "es-MX"];

#[test]
fn every_email_matches_its_snapshot() {
    let templates = built_in();
    for locale in LOCALES {
        for kind in EmailKind::all() {
            let mut shown = String::new();
            for sample in samples(kind.template, kind.recipient, locale) {
                let RenderedEmail { subject, text, .. } = templates.render(&sample.notification).unwrap();
                write!(shown, "──── {}\nSubject: {subject}\n\n{text}\n", sample.variant).unwrap();
            }
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(format!("{locale}.{kind}"), shown);
            });
        }
    }
}

/// A reminder with as many requests, and as long texts, as it may list.
#[test]
fn the_longest_list_of_requests_stays_below_100_kb() {
    let (templates, sender) = (built_in(), Sender::parse("no-reply@mail.example.com").unwrap());
    let mut bytes_max = 0;
    // With three bytes per character; as many requests as possible, or as long ones.
    for (locale, requests, link) in ["fr-CA", "en-CA", "es-MX"]
        .into_iter()
        .flat_map(|locale| [(50, 0), (50, 80), (12, 80), (5, 2_000)].map(|(requests, link)| (locale, requests, link)))
    {
        let mut notification =
            samples(Template::RequestsPending, Recipient::OrganizationContact, locale).remove(0).notification;
        let text = |bytes: usize| Some("漢".repeat(bytes / 3));
        let each = LIST_BYTES_MAX / requests - link;
        let request = PendingRequest {
            participant: text(each / 4),
            plan: text(each / 4),
            actor: text(each / 4),
            reason: text(each / 4),
            admin_url: (link > 0).then(|| format!("https://admin.example.com/{}", "a".repeat(link - 26))),
            ..notification.facts.requests[0].clone()
        };
        notification.facts.requests = vec![request; requests];
        notification.facts.requests_count = Some(10_000);
        let rendered = templates.render(&notification).unwrap();
        let origin = Origin { entry_id: Uuid::nil(), conversation_id: Uuid::nil() };
        let email = compose(&sender, origin, &notification, rendered, DateTime::UNIX_EPOCH).unwrap();
        bytes_max = bytes_max.max(email.bytes(false).unwrap().len());
    }
    println!("at most {bytes_max} bytes");
    assert!(bytes_max < 100_000, "{bytes_max}");
}

#[test]
fn every_snapshot_belongs_to_an_email() {
    let expected: BTreeSet<String> = LOCALES
        .into_iter()
        .flat_map(|locale| EmailKind::all().map(move |kind| format!("{locale}.{kind}.snap")))
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/snapshots");
    let files: BTreeSet<String> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, expected, "delete the snapshots of emails that no longer exist");
}

#[test]
fn html_parts_contain_all_text_of_the_plain_parts() {
    let templates = built_in();
    for locale in LOCALES {
        for Sample { variant, notification } in
            EmailKind::all().flat_map(|kind| samples(kind.template, kind.recipient, locale))
        {
            let RenderedEmail { html, text, language, .. } = templates.render(&notification).unwrap();
            let what = format!("{locale} {} {:?} {variant}", notification.template, notification.recipient);
            assert!(html.starts_with("<!doctype html>"), "{what}");
            assert!(html.contains(&format!("<html lang=\"{language}\" ")), "{what}");
            assert!(!html.contains("&#"), "{what}: {html}");
            for attribute in ["role=\"article\"", "aria-roledescription=\"email\""] {
                assert_eq!(html.matches(attribute).count(), 1, "{what}: {attribute}");
            }
            assert!(html.len() < 100_000, "{what}");
            assert!(html.lines().all(|line| line.len() < 998), "{what}: lines too long for mail servers");
            assert!(!html.contains("\n."), "{what}: a dot that SMTP must double");
            // The page contains every line of the text, except the addresses of links.
            let page = strip_tags(&html);
            let quoted = |line: &str| line.strip_prefix('>').map(|quoted| quoted.trim().to_owned());
            let lines = text.lines().map(|line| quoted(line).unwrap_or_else(|| line.to_owned()));
            let lines = lines.map(|line| line.split(" (https://").next().unwrap_or_default().to_owned());
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with("https://")) {
                // "Label: value" becomes two cells of a table.
                let found = page.contains(&line)
                    || line.split_once(": ").is_some_and(|(label, value)| {
                        page.contains(label.trim_end_matches('\u{a0}')) && page.contains(value)
                    })
                    || page.contains(line.trim_end_matches([':', '\u{a0}']));
                assert!(found, "{what}: the page lacks {line:?}\n{page}");
            }
            if let Some(url) = &notification.facts.admin_url {
                assert!(html.contains(&format!("href=\"{url}\"")) && text.contains(url.as_str()), "{what}");
            }
        }
    }
}

/// The text of a page, one line per element.
fn strip_tags(html: &str) -> String {
    let body = html.split_once("<body").unwrap().1;
    let mut text = String::new();
    for element in body.split('<').skip(1) {
        let (tag, rest) = element.split_once('>').unwrap();
        let name = tag.trim_start_matches('/').split(' ').next().unwrap();
        if !["strong", "bdi", "span", "a"].contains(&name) {
            text.push('\n');
        }
        text.push_str(rest);
    }
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

/// The longest texts that commands and documents may have, in the characters that take the most bytes.
#[test]
fn any_text_within_the_limits_stays_below_100_kb() {
    let templates = built_in();
    let sender = Sender::parse("no-reply@offramp.example").unwrap();
    let origin = Origin { entry_id: Uuid::nil(), conversation_id: Uuid::nil() };
    let (name, prose) = ("🏊".repeat(1_000), "🏊 ".repeat(1_000) + &"🏊".repeat(1_000));
    for locale in LOCALES {
        for kind in EmailKind::all() {
            for Sample { variant, mut notification } in samples(kind.template, kind.recipient, locale) {
                let facts = &mut notification.facts;
                for long in [&mut facts.participant, &mut facts.plan, &mut facts.actor, &mut facts.invoice_id] {
                    *long = long.as_ref().map(|_| name.clone());
                }
                for long in [&mut facts.reason, &mut facts.note, &mut facts.failure_message] {
                    *long = long.as_ref().map(|_| prose.clone());
                }
                facts.organization.name.clone_from(&name);
                for request in &mut facts.requests {
                    request.reason = Some(prose.clone());
                }
                let rendered = templates.render(&notification).unwrap();
                let email = compose(&sender, origin, &notification, rendered, DateTime::UNIX_EPOCH).unwrap();
                for supports_8bit in [true, false] {
                    let bytes = email.bytes(supports_8bit).unwrap().len();
                    assert!(bytes < 100_000, "{locale} {kind} {variant}: {bytes} bytes");
                }
            }
        }
    }
}

#[test]
fn readers_get_the_closest_language() {
    let templates = built_in();
    for (locale, language, sentence) in [
        ("fr-CA", "fr-CA", "Nous réessaierons le 18 juin 2026."),
        ("fr_CA", "fr-CA", "Nous réessaierons le 18 juin 2026."),
        ("fr-FR", "fr-FR", "Une question\u{202f}?"),
        ("en-GB", "en-GB", "We’ll try again on 18 June 2026."),
        ("es", "es", "Volveremos a intentarlo el 18 de junio de 2026."),
        ("es-ES", "es-ES", "Importe: 49,99"),
        ("es-AR", "es-AR", "Monto: "),
        ("es-MX", "es-MX", "Número de cargo: INV-"),
        ("de-DE", "en", "We’ll try again on June 18, 2026."),
        ("", "en", "We’ll try again on June 18, 2026."),
        ("fr\r\nBcc: x@example.com", "en", "We’ll try again on June 18, 2026."),
    ] {
        let rendered = templates.render(&Notification { locale: locale.to_owned(), ..sample() }).unwrap();
        assert_eq!(rendered.language, language, "{locale:?}");
        assert!(rendered.text.contains(sentence), "{locale:?}: {}", rendered.text);
        assert!(rendered.html.contains(&format!("<html lang=\"{language}\" ")), "{locale:?}: {}", rendered.html);
    }
}

#[test]
fn facts_are_never_parsed_as_templates_or_html() {
    let mut notification = sample();
    notification.facts.participant = Some("{{organization.email}} <b>\"Léa\"</b> & l'autre".to_owned());
    let rendered = built_in().render(&notification).unwrap();
    assert!(rendered.text.contains("{{organization.email}} <b>\"Léa\"</b> & l'autre"), "{}", rendered.text);
    let escaped = "{{organization.email}} &lt;b&gt;&quot;Léa&quot;&lt;/b&gt; &amp; l'autre";
    assert!(rendered.html.contains(escaped), "{}", rendered.html);
}

#[test]
fn empty_names_hold_no_email_back() {
    for Sample { variant, mut notification } in
        EmailKind::all().flat_map(|kind| samples(kind.template, kind.recipient, "en-CA"))
    {
        let facts = &mut notification.facts;
        let names = [&mut facts.participant, &mut facts.plan, &mut facts.actor, &mut facts.invoice_id];
        for name in names.into_iter().flatten() {
            *name = " \u{200b}\n".to_owned();
        }
        facts.organization.name = String::new();
        if let Some(manager) = &mut facts.manager {
            (manager.name, manager.email) = (Some(String::new()), String::new());
        }
        if let Some(card) = &mut facts.card {
            (card.brand, card.last4) = (String::new(), String::new());
        }
        let what = format!("{} {:?} {variant}", notification.template, notification.recipient);
        let rendered = built_in().render(&notification).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!rendered.subject.is_empty(), "{what}");
    }
}

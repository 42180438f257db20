//! Checks of every email in every language. (`make mail-audit` adds checks with a browser and a spam filter.)

use chrono::Utc;
use offramp_domain::notification::Notification;
use offramp_mail::Templates;

use offramp_testkit::emails::{Email, every_email};
use offramp_testkit::html::Html;

fn templates() -> Templates {
    Templates::load(None).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn both_parts_state_every_fact_and_fetch_nothing() {
    let emails = every_email(&templates(), Utc::now());
    assert!(emails.len() >= 3 * 24, "{} emails", emails.len());
    let findings: Vec<String> = emails
        .iter()
        .flat_map(|mail| mail.findings().into_iter().map(|finding| format!("{}: {finding}", mail.name)))
        .collect();
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// Yes/no facts are stated in words that differ per template, so the two renderings are compared.
#[test]
fn both_parts_distinguish_yes_from_no() {
    let templates = templates();
    let mut told = 0;
    for Email { name, notification, rendered, .. } in every_email(&templates, Utc::now()) {
        let mut opposite: Notification = notification.clone();
        if let Some(refund) = &mut opposite.facts.refund {
            *refund = !*refund;
        } else if let Some(card) = opposite.facts.card.as_mut().filter(|card| card.expires.is_some()) {
            card.expired = !card.expired;
        } else {
            continue;
        }
        let other = templates.render(&opposite).unwrap();
        assert_ne!(rendered.text, other.text, "{name}");
        assert_ne!(Html::parse(&rendered.html).text, Html::parse(&other.html).text, "{name}");
        told += 1;
    }
    assert!(told >= 3 * 5, "{told}");
}

#[test]
fn the_audit_finds_each_kind_of_defect() {
    let mut emails = every_email(&templates(), Utc::now()).into_iter();
    let sound = emails.find(|mail| mail.name == "fr-CA/payment-failed.organization_contact/full").unwrap();
    let check = |change: &dyn Fn(&mut Email), finding: &str| {
        let mut mail = sound.clone();
        change(&mut mail);
        let findings = mail.findings();
        assert!(findings.iter().any(|found| found.contains(finding)), "{finding}: {findings:#?}");
    };
    let body = |html: &str| {
        let html = html.to_owned();
        move |mail: &mut Email| mail.rendered.html = mail.rendered.html.replace("</body>", &format!("{html}</body>"))
    };
    check(
        &|mail: &mut Email| mail.rendered.text = mail.rendered.text.replace("18 juin", "19 juin"),
        "the text part does not say NextAttemptOn",
    );
    check(
        &|mail: &mut Email| mail.rendered.html = mail.rendered.html.replace("4242", "4243"),
        "the HTML part does not say CardLast4",
    );
    check(
        &|mail: &mut Email| mail.rendered.html = "<div style='display: none'>49,99\u{a0}$</div>".to_owned(),
        "the HTML part does not say Amount (49,99 $)",
    );
    check(
        &|mail: &mut Email| {
            mail.rendered.html =
                mail.rendered.html.replace("href=\"https://admin.example.com/", "href=\"https://example.com/");
        },
        "no link leads to https://admin.example.com/subscriptions/sub-0042",
    );
    check(&body("<a href='subscriptions'>x</a>"), "a link leads nowhere: subscriptions");
    check(&body("<a href='javascript:alert(1)'>x</a>"), "a link leads nowhere: javascript:alert(1)");
    check(&body("<img src='https://t.example/1.gif' alt='x'>"), "it fetches https://t.example/1.gif");
    check(&body("<img src='https://boreal.example/logo.png' width=1 alt='x'>"), "an invisible image");
    check(
        &body("<!--[if mso]><v:fill src='https://t.example/2.gif'/><![endif]-->"),
        "it fetches https://t.example/2.gif",
    );
    check(&body("<table background='https://t.example/3.gif'></table>"), "it fetches https://t.example/3.gif");
    check(&body("<p style='background: url(//t.example)'>"), "a style fetches something");
    check(&body("<style>@import 'x.css';</style>"), "a style sheet fetches something");
    check(&body("<script>x</script>"), "it has an element script");
    check(&body("<p onclick='x'>"), "it runs onclick");
    check(&body("<a class='button' href='https://example.com/'>x</a>"), "it has 2 buttons instead of 1");
    check(&|mail: &mut Email| mail.rendered.subject = "x".repeat(61), "the subject has 61 characters");
    check(&|mail: &mut Email| mail.rendered.text.push_str("Fin..\n"), "a double full stop in the text part: ");
    check(
        &|mail: &mut Email| {
            mail.notification.facts.failure_message = Some("Par quelqu’un".to_owned());
            mail.rendered.text.push_str("Par quelqu’un\n");
        },
        "a line of a person's text is not quoted: Par quelqu’un",
    );
    check(&|mail: &mut Email| mail.bytes.resize(100_001, b'x'), "it is longer than 100000 bytes");
}

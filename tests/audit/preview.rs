//! Uses the page of `offramp preview` like a person: its switches, reloads after changes of a template, downloads and sending.

use std::fs;
use std::path::Path;

use mail_parser::MessageParser;
use serde_json::json;

use crate::devtools::{Browser, Page, Scheme};
use crate::look::axe_findings;
use offramp_testkit::eventually;
use offramp_testkit::preview_process::{EMAIL, PreviewProcess, write_words};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};

/// The window, in CSS pixels.
const DESK: (u32, u32) = (1400, 900);

/// Uses the page, writes screenshots to `out`, and returns the findings of axe. Panics on any other defect.
#[allow(clippy::too_many_lines, reason = "a scenario is easier to follow in one piece")]
pub async fn drive(browser: &Browser, axe: &str, out: &Path) -> Vec<String> {
    fs::create_dir_all(out).unwrap();
    let templates = tempfile::tempdir().unwrap();
    let sink = SmtpSink::scripted(Tls::No, |at, nth| match (at, nth) {
        (Step::Rcpt, 2) => Action::Answer("550 5.1.1 nobody of that name here"),
        (Step::Content, _) => Action::Answer("250 2.0.0 Ok: queued as 4F2A"),
        _ => Action::Ok,
    })
    .await;
    let preview = PreviewProcess::start(&[
        ("OFFRAMP_TEMPLATES", templates.path().to_str().unwrap()),
        ("OFFRAMP_SMTP_URL", &sink.url()),
    ]);
    let page = browser.page().await;
    page.resize(DESK.0, DESK.1, 1, false).await;
    page.emulate(Scheme::Light, "screen").await;
    let shoot = async |name: &str| fs::write(out.join(format!("{name}.png")), page.screenshot().await).unwrap();

    // The page opens and shows an email in both widths.
    page.open(&format!("http://{}/", preview.address)).await;
    page.until(SETTLED).await;
    let list = page.evaluate("document.querySelectorAll('nav a').length").await.as_u64().unwrap();
    assert!(list > 24, "{list} emails are listed");
    assert_eq!(page.evaluate(WIDTHS).await, json!([360, 600]));
    shoot("first-look").await;

    // Another email, in another language.
    page.click(&format!("nav a[href$='/{EMAIL}/full']")).await;
    choose(&page, "locale", "fr-CA").await;
    page.until(SETTLED).await;
    page.until(&text_says("Bonjour")).await;
    page.until(&frame_says("Bonjour")).await;
    assert_eq!(page.evaluate("location.hash").await, format!("#/fr-CA/{EMAIL}/full"));
    assert_eq!(page.evaluate("document.querySelector('nav [aria-current]').textContent").await, "Usual");
    let inbox = page.evaluate("document.querySelector('.phone .row').innerText").await.as_str().unwrap().to_owned();
    let subject = page.evaluate("document.getElementById('subject').textContent").await.as_str().unwrap().to_owned();
    assert!(inbox.contains("Club Boréal") && inbox.contains(&subject), "{inbox}");
    let headers = page.evaluate("document.getElementById('headers').textContent").await;
    assert!(headers.as_str().unwrap().contains("X-Offramp-Template: request-declined"), "{headers}");
    choose(&page, "locale", "es-MX").await;
    page.until(&text_says("Hola")).await;
    choose(&page, "locale", "fr-CA").await;
    page.until(&text_says("Bonjour")).await;

    // The keyboard: next, previous, filter.
    let hash = async || page.evaluate("location.hash").await.as_str().unwrap().to_owned();
    let here = hash().await;
    page.evaluate(&press("j")).await;
    page.until(&format!("location.hash !== '{here}'")).await;
    page.evaluate(&press("k")).await;
    page.until(&format!("location.hash === '{here}'")).await;
    page.evaluate(&press("/")).await;
    page.until("document.activeElement.id === 'filter'").await;
    page.insert("card expir").await;
    page.until("[...document.querySelectorAll('nav a')].every((link) => link.href.includes('card-expiring'))").await;
    shoot("filtered").await;
    page.evaluate("(() => { filter.value = ''; filter.dispatchEvent(new Event('input')); email.focus(); })()").await;
    page.until(SETTLED).await;

    // The brand: another look has an address of its own.
    choose(&page, "look", "white").await;
    page.until(SETTLED).await;
    assert_eq!(hash().await, format!("{here}/white"));
    shoot("white-brand").await;
    choose(&page, "look", "own").await;
    page.until(SETTLED).await;
    assert_eq!(hash().await, here);

    // The header is one line, and the navigation begins below it, although the path of the directory is long.
    page.resize(1280, 900, 1, false).await;
    page.until(SETTLED).await;
    assert_eq!(page.evaluate(HEADER).await, json!([true, true]), "one line, nothing below it");
    shoot("1280").await;
    page.resize(DESK.0, DESK.1, 1, false).await;

    // Dark and light mode, whatever the system prefers, and the widths.
    for preferred in Scheme::ALL {
        page.emulate(preferred, "screen").await;
        page.until(SETTLED).await;
        let light = page.evaluate(BRIGHTNESS).await.as_f64().unwrap();
        page.click("label:has(#dark)").await;
        page.until(SETTLED).await;
        let dark = page.evaluate(BRIGHTNESS).await.as_f64().unwrap();
        assert!(dark < 100.0 && light > 200.0, "brightness of the email: {light} in light mode, {dark} in dark mode");
        shoot(&format!("dark-mail-{}-system", preferred.as_str())).await;
        page.click("label:has(#dark)").await;
        page.until(SETTLED).await;
        shoot(&format!("light-mail-{}-system", preferred.as_str())).await;
    }
    page.emulate(Scheme::Light, "screen").await;
    for width in [360, 600] {
        page.click(&format!("label:has([value='{width}'])")).await;
        page.until(SETTLED).await;
        assert_eq!(page.evaluate(WIDTHS).await, json!([width]));
    }
    page.click("label:has([value='360 600'])").await;

    // A template is changed, broken and repaired.
    write_words(templates.path(), "\nTout neuf\u{a0}!\n");
    page.until(&text_says("Tout neuf")).await;
    page.until(&frame_says("Tout neuf")).await;
    page.until(SETTLED).await;
    shoot("saved").await;
    write_words(templates.path(), "\nTout cassé {{plan_name}}\n");
    page.until("!document.getElementById('problems').hidden").await;
    let problem = page.evaluate("document.getElementById('problems').innerText").await.as_str().unwrap().to_owned();
    assert!(problem.contains(&format!("fr/{EMAIL}")) && problem.contains("plan_name"), "{problem}");
    let text = page.evaluate("document.getElementById('text').textContent").await;
    assert!(text.as_str().unwrap().contains("Tout neuf"), "the last valid template is kept: {text}");
    shoot("broken").await;
    write_words(templates.path(), "\nMieux.\n");
    page.until("document.getElementById('problems').hidden").await;
    page.until(&text_says("Mieux")).await;

    // Download.
    let downloads = tempfile::tempdir().unwrap();
    browser.keep_downloads_in(downloads.path()).await;
    page.click("#eml").await;
    let kept = downloads.path().join(format!("fr-CA.{EMAIL}.full.eml"));
    let eml =
        eventually("the download", || async { fs::read(&kept).ok().filter(|bytes| bytes.ends_with(b"\r\n")) }).await;
    let parsed = MessageParser::default().parse(&eml).unwrap();
    assert_eq!(page.evaluate("document.getElementById('subject').textContent").await, parsed.subject().unwrap());

    // Sending: accepted, then rejected.
    page.click("#to").await;
    page.insert("moi@example.org").await;
    page.click("#send button").await;
    page.until("document.getElementById('answer').textContent.includes('250 2.0.0 Ok: queued as 4F2A')").await;
    shoot("sent").await;
    page.click("#send button").await;
    page.until("document.getElementById('answer').textContent.includes('nobody of that name here')").await;
    assert_eq!(page.evaluate("document.getElementById('answer').className").await, "bad");
    shoot("refused").await;
    assert!(sink.commands().contains(&"RCPT TO:<moi@example.org>".to_owned()), "{:?}", sink.commands());

    // Layout on a phone, and accessibility.
    let mut findings = Vec::new();
    page.evaluate(axe).await;
    for (width, height) in [DESK, (375, 800)] {
        page.resize(width, height, 1, width < 600).await;
        for scheme in Scheme::ALL {
            page.emulate(scheme, "screen").await;
            page.until(SETTLED).await;
            let wide = page.evaluate("document.documentElement.scrollWidth").await.as_u64().unwrap();
            if wide > u64::from(width) {
                findings.push(format!("the page is {wide} px wide in a window of {width} px"));
            }
            shoot(&format!("{width}-{}", scheme.as_str())).await;
            // The emails in the frames are audited separately.
            let results = page.evaluate("axe.run(document, { iframes: false })").await;
            findings.extend(axe_findings(&results["violations"], scheme));
        }
    }

    // The page reports when the program has exited.
    assert_eq!(preview.interrupt().await.code(), Some(0));
    page.until("document.getElementById('state').textContent.startsWith('No connection')").await;
    page.close().await;
    findings
}

/// Whether everything is loaded.
const SETTLED: &str = "(() => {
    const frames = [...document.querySelectorAll('iframe')];
    return frames.length > 0 && document.getElementById('text').textContent !== '' && frames.every((frame) =>
        frame.contentDocument?.readyState === 'complete'
        && frame.contentDocument.URL.endsWith(frame.getAttribute('src'))
        && frame.contentDocument.body?.childElementCount > 0);
})()";

/// Whether the header is one line, and whether the navigation does not lie below it.
const HEADER: &str = "(() => {
    const header = document.querySelector('header').getBoundingClientRect();
    scrollTo(0, 400);
    const nav = document.querySelector('nav').getBoundingClientRect();
    scrollTo(0, 0);
    return [header.height < 60, nav.top >= header.height - 1];
})()";

/// Presses a key on the page.
fn press(key: &str) -> String {
    format!("document.body.dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}', bubbles: true }}))")
}

/// Whether the first frame shows these words.
fn frame_says(words: &str) -> String {
    format!("document.querySelector('iframe')?.contentDocument?.body?.innerText.includes('{words}')")
}

/// Whether the text part contains these words.
fn text_says(words: &str) -> String {
    format!("document.getElementById('text').textContent.includes('{words}')")
}

/// The window widths in the frames.
const WIDTHS: &str = "[...document.querySelectorAll('iframe')].map((frame) => frame.contentWindow.innerWidth)";

/// The brightness of the email's background, from 0 to 255, taken from the first element with a background.
const BRIGHTNESS: &str = "(() => {
    const { contentDocument, contentWindow } = document.querySelector('iframe');
    const colors = [...contentDocument.querySelectorAll('body, body *')]
        .map((element) => contentWindow.getComputedStyle(element).backgroundColor.match(/[\\d.]+/g).map(Number))
        .filter(([, , , alpha = 1]) => alpha > 0);
    return (colors[0][0] + colors[0][1] + colors[0][2]) / 3;
})()";

async fn choose(page: &Page, select: &str, value: &str) {
    page.evaluate(&format!(
        "(() => {{
            const select = document.getElementById('{select}');
            select.value = '{value}';
            select.dispatchEvent(new Event('change', {{ bubbles: true }}));
        }})()"
    ))
    .await;
}

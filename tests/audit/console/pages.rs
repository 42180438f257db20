//! Every page, and the keyboard.

use offramp_testkit::say;
use offramp_testkit::web_process::{WebProcess, percent_encoded};

use super::stage::{FIRST_FAILED, HOSTILE, HOSTILE_SUBSCRIPTION, Stage};
use super::visitor::{Setting, Visitor};

const TOKEN: &str = "0123456789abcdef";

/// Logs in to a console that changes nothing, looks around and leaves.
pub async fn visit_read_only<'a>(setting: &Setting<'a>, stage: &Stage) -> Visitor<'a> {
    say!("a read-only console");
    let console = WebProcess::console(&stage.bed, &[], &[("OFFRAMP_CONSOLE_TOKEN", TOKEN)]);
    let mut guest = Visitor::new(setting, &console).await;
    guest.look_at("login", "/emails").await;
    guest.fill("name", "Bob").await;
    guest.fill("token", "guessed").await;
    guest.go("form button").await;
    // Whoever guesses has to wait.
    guest.look_within("login-wrong", 3_000.0).await;
    guest.fill("token", TOKEN).await;
    guest.enter().await;
    assert!(guest.text().await.starts_with("Emails"), "a login leads to the page that was asked for");
    guest.look("read-only").await;
    guest.open("/dead-letters").await;
    for path in ["/emails", "/dead-letters", "/requests", "/subscription?id=sub-0"] {
        guest.open(path).await;
        let changes = "main input[type=checkbox], main .danger, main form[action$=change], main form[action$=decide]";
        assert_eq!(guest.count(changes).await, 0, "{path} of a read-only console");
    }
    guest.look("read-only-request").await;
    guest.go("header .visitor button").await;
    assert!(guest.text().await.starts_with("Log in"));
    guest.open("/emails").await;
    assert!(guest.text().await.starts_with("Log in"), "whoever has logged out is a stranger");
    guest
}

/// Looks at all pages that need no change before.
pub async fn look_at_all(ann: &mut Visitor<'_>) {
    say!("every page");
    // The first copy of the dead letters is made when somebody looks for the first time.
    ann.open("/dead-letters").await;
    ann.open("/").await;
    let is_live = "document.querySelector('[data-live]').innerText.includes('ready') && document.querySelectorAll('polyline').length > 5
        && document.querySelector('.tile:last-child .value').innerText !== '?'";
    ann.page.until(is_live).await;
    let number = "document.querySelector('.tile:last-child .value').innerText";
    let number = ann.page.evaluate(number).await;
    assert_eq!(number, "5,000", "dead letters count while they are copied, too");
    ann.look("overview").await;

    ann.look_at("requests", "/requests").await;
    assert_eq!(ann.count("tbody tr").await, 100);
    ann.go("nav.tabs a:nth-child(3)").await;
    ann.fill("organization", "org").await;
    ann.go(".filter button").await;
    ann.look("requests-old").await;
    ann.look_at("requests-none", "/requests?days=30").await;

    ann.look_at("subscription", "/subscription?id=sub-0").await;
    ann.look_at("subscription-unreadable", &format!("/subscription?id={}", percent_encoded(HOSTILE))).await;
    ann.look_at("subscription-hostile", &format!("/subscription?id={}", percent_encoded(HOSTILE_SUBSCRIPTION))).await;
    ann.look_at("account", "/account?id=acc-0").await;
    ann.look_at("account-hostile", "/account?id=acc-hostile").await;

    search(ann, "client0@home.example").await;
    ann.look("search-address").await;
    assert!(ann.text().await.contains("acc-0"));
    search(ann, "rejected-0").await;
    ann.look("search-command").await;
    search(ann, "wrong-0").await;
    ann.look("search-dead-letter").await;
    search(ann, &HOSTILE.chars().take(150).collect::<String>()).await;
    ann.look("search-nothing").await;
    search(ann, HOSTILE_SUBSCRIPTION).await;
    assert!(ann.text().await.starts_with("Subscription"), "an id leads to its page");
    ann.open(&format!("/subscription?id=sub-{FIRST_FAILED}")).await;
    let message_id = ann.page.evaluate("document.querySelector('.timeline p.id').innerText").await;
    search(ann, message_id.as_str().unwrap()).await;
    assert!(ann.text().await.contains(&format!("sub-{FIRST_FAILED}")));
    ann.look("search-message-id").await;

    ann.look_at("emails-failed", "/emails").await;
    ann.fill("with", "acc-hostile").await;
    ann.go(".filter button").await;
    ann.look("emails-filtered").await;
    ann.go("tbody a").await;
    let frame = "document.querySelector('iframe').getBoundingClientRect().height > 300";
    ann.page.until(frame).await;
    ann.look("email-hostile").await;
    ann.open("/emails").await;
    ann.go("nav.tabs a:nth-child(2)").await;
    assert!(ann.count("tbody tr").await > 0, "some emails wait");
    ann.look("emails-waiting").await;
    ann.go("tbody td:first-child a").await;
    ann.look("email-waiting").await;

    ann.look_at("dead-letters", "/dead-letters").await;
    ann.go("tbody tr:first-child a").await;
    ann.look("dead-letter-group").await;
    ann.go("nav.pages a").await;
    ann.look("dead-letter-group-next").await;
    ann.go("tbody tr:first-child a").await;
    ann.look("dead-letter").await;
    search(ann, "wrong-4").await;
    ann.go("main ul a").await;
    ann.look("dead-letter-hostile").await;
    ann.look_at("not-found", "/nothing").await;
    ann.look_at("not-found-subscription", &format!("/subscription?id={}", percent_encoded("<script>"))).await;
}

/// Searches with the form in the header.
async fn search(ann: &Visitor<'_>, text: &str) {
    ann.open("/").await;
    ann.fill("q", text).await;
    ann.enter().await;
}

/// The Tab key reaches everything in order, and everything shows that it has the focus.
pub async fn use_keyboard(ann: &Visitor<'_>) {
    say!("the keyboard");
    ann.open("/").await;
    let mut order = Vec::new();
    for _ in 0..8 {
        ann.page.press("Tab").await;
        let focused = "(() => {
            const element = document.activeElement;
            const { outlineStyle, outlineWidth } = getComputedStyle(element);
            const box = element.getBoundingClientRect();
            const isVisible = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2 && box.left >= 0 && box.top >= 0;
            return [element.innerText || element.name, isVisible];
        })()";
        let focused = ann.page.evaluate(focused).await;
        assert_eq!(focused[1], true, "the focus of {} is not visible", focused[0]);
        order.push(focused[0].as_str().unwrap().to_owned());
    }
    let expected = ["Skip to the content", "Offramp", "Overview", "Requests", "Emails", "Dead letters", "q", "Search"];
    assert_eq!(order, expected);
    ann.picture("keyboard").await;

    // The search, without the mouse.
    ann.open("/").await;
    for _ in 0..7 {
        ann.page.press("Tab").await;
    }
    ann.page.insert("sub-99999").await;
    ann.enter().await;
    assert!(ann.text().await.starts_with("Subscription sub-99999"));
    // The skip link, which leads to the first link of the content.
    ann.page.press("Tab").await;
    ann.picture("keyboard-skip").await;
    ann.page.press("Enter").await;
    ann.page.until("document.activeElement.id === 'content'").await;
    ann.page.press("Tab").await;
    ann.page.until("document.activeElement.closest('main') !== null && document.activeElement.id !== 'content'").await;
    // A box, with the space bar.
    ann.open("/emails").await;
    ann.page.evaluate("document.querySelector('tbody input').focus()").await;
    ann.page.press(" ").await;
    assert_eq!(ann.count("input:checked").await, 1);
}

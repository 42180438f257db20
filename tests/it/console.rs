//! `offramp console` over HTTP: who may come in, what pages show, and what changes do. (`make console-audit` drives it in a browser.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::doc;
use futures_util::TryStreamExt;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use serde_json::json;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, command, populate, subscription};
use offramp_testkit::http::Response;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::web_process::{WebProcess, percent_encoded};
use offramp_testkit::worker_process::{WorkerProcess, offramp};

/// The value of a header, from the head of a response, which is in lower case.
fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let line = response.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_default()
}

/// Waits for the end of the change that a form began. Returns what its page says.
async fn change(console: &WebProcess, begun: &Response) -> String {
    assert_eq!(begun.status, 303, "{begun}");
    let path = header(begun, "location").to_owned();
    let state = eventually("the end of the change", || async {
        let state = console.get(&format!("{path}/state")).await;
        (header(&state, "x-live") == "ended").then_some(state)
    });
    state.await.body
}

fn init(bed: &TestBed) {
    assert!(offramp(bed).arg("init").output().unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_come_in() {
    let bed = TestBed::new("strangers").await;
    init(&bed);

    // Reachable by others, without a token.
    let open = offramp(&bed).args(["console", "--console-addr", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(open.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&open.stderr).contains("OFFRAMP_CONSOLE_TOKEN"));

    let console = WebProcess::console(&bed, &[], &[("OFFRAMP_CONSOLE_HOSTS", "console.example")]);
    for (host, status) in [("evil.example", 403), ("console.example", 200), ("localhost:1", 200)] {
        assert_eq!(console.ask("GET /", &[("Host", host)], "").await.status, status, "{host}");
    }
    let page = console.get("/").await;
    for (name, value) in [
        ("content-security-policy", "default-src 'none'; style-src 'self'; script-src 'self'"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("server-timing", "total;dur="),
    ] {
        assert!(header(&page, name).starts_with(value), "{}", page.headers);
    }
    // Read-only, whoever asks; and nobody asks from another page.
    for path in ["/emails/change", "/dead-letters/change", "/requests/decide"] {
        let refused = console.submit(path, &[("action", "retry-all"), ("decision", "accept")]).await;
        assert!(refused.status == 403 && refused.body.contains("--allow-changes"), "{path}: {refused}");
    }
    let foreign = [("Origin", "http://evil.example"), ("Content-Type", "application/x-www-form-urlencoded")];
    let refused = console.ask("POST /dead-letters/refresh", &foreign, "").await;
    assert!(refused.status == 403 && refused.body.contains("only a page of the console"), "{refused}");
    assert_eq!(console.get("/nothing").await.status, 404);
    assert_eq!(console.interrupt().await.code(), Some(0));

    let token = "correct horse battery";
    let console = WebProcess::console(&bed, &[], &[("OFFRAMP_CONSOLE_TOKEN", token)]);
    let away = console.get("/emails?state=waiting").await;
    assert_eq!((away.status, header(&away, "location")), (303, "/login?next=%2femails%3fstate%3dwaiting"));
    assert_eq!(console.submit("/dead-letters/refresh", &[]).await.status, 401);
    let wrong = console.submit("/login", &[("name", "Ann"), ("token", "guessed")]).await;
    assert!(wrong.status == 403 && wrong.body.contains("The token is wrong"), "{wrong}");
    let nameless = console.submit("/login", &[("name", " "), ("token", token)]).await;
    assert_eq!(nameless.status, 422);
    let login = [("name", "Ann <b>"), ("token", token), ("next", "//evil.example")];
    let right = console.submit("/login", &login).await;
    assert_eq!((right.status, header(&right, "location")), (303, "/"));
    let cookie = header(&right, "set-cookie");
    assert!(cookie.contains("httponly; samesite=lax"), "{cookie}");
    let session = [("Cookie", cookie.split(';').next().unwrap())];
    let page = console.ask("GET /", &session, "").await;
    assert!(page.status == 200 && page.body.contains("Ann &lt;b&gt;") && page.body.contains("read-only"), "{page}");
    let post = [session[0], ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(console.ask("POST /logout", &post, "").await.status, 303);
    assert_eq!(console.ask("GET /", &session, "").await.status, 303);

    let console = WebProcess::console(&bed, &[], &[("OFFRAMP_CONSOLE_IDENTITY_HEADER", "X-Forwarded-User")]);
    assert_eq!(console.get("/").await.status, 401);
    let page = console.ask("GET /", &[("X-Forwarded-User", "ann@club.example")], "").await;
    assert!(page.status == 200 && page.body.contains("ann@club.example"), "{page}");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_whatever_others_wrote_as_text() {
    let bed = TestBed::new("console-hostile").await;
    init(&bed);
    populate(&bed).await;
    let script = "<script>alert(1)</script>\"'&";
    let id = "sub/../<script>alert(1)</script>?a=b&c";
    let mut hostile = subscription(id, "org", "acc");
    hostile.get_document_mut("participant").unwrap().insert("name", script);
    hostile.insert("status", "cancellation_requested");
    let request = doc! { "requested_at": bson::DateTime::now(), "actor": { "role": "client", "account_id": "acc", "name": script }, "reason": script };
    hostile.insert("cancellation_request", request);
    hostile.insert("version", 1_i64);
    bed.collection("subscriptions").insert_one(hostile).await.unwrap();
    // What no worker can read is shown as far as it goes.
    let corrupt = doc! { "_id": "corrupt", "organization_id": 7, "account_id": "acc", "status": script, "billing": 3, "notifications": "x", "history": [script] };
    bed.collection("subscriptions").insert_one(corrupt).await.unwrap();
    let worker = WorkerProcess::start(&bed, "file:///tmp").await;
    for body in
        [json!({ "id": script, "type": script, "data": { "subscription_id": script } }).to_string(), script.to_owned()]
    {
        bed.publish("subscription.cancellation", body.as_bytes()).await;
    }
    let rejected = command(
        "rejected <b>",
        "subscription.cancellation",
        json!({ "organization_id": "org",
        "subscription_id": id, "actor": { "role": "admin", "id": "ann", "name": script }, "via": "purchases", "month": "2001-01", "reason": script }),
    );
    bed.command(&rejected).await;
    let console = WebProcess::console(&bed, &["--allow-changes"], &[]);
    let dead_letters = eventually("two dead letters", || async {
        console.submit("/dead-letters/refresh", &[]).await;
        let page = console.get("/dead-letters").await;
        page.body.contains(">2 in 2 groups").then_some(page)
    })
    .await;
    let group =
        dead_letters.body.split("href=\"/dead-letters/groups/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let group_page = console.get(&format!("/dead-letters/groups/{group}")).await;
    let handle = group_page
        .body
        .split("class=\"id\" href=\"/dead-letters/")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    let encoded = percent_encoded(id);
    eventually("the rejection", || async {
        console.get(&format!("/subscription?id={encoded}")).await.body.contains("month_already_invoiced")
    })
    .await;
    let searched = percent_encoded(script);
    for path in [
        "/".to_owned(),
        "/requests".to_owned(),
        "/emails".to_owned(),
        "/emails?state=waiting".to_owned(),
        "/account?id=acc".to_owned(),
        "/subscription?id=corrupt".to_owned(),
        format!("/subscription?id={encoded}"),
        format!("/subscription?id={searched}"),
        format!("/search?q={searched}"),
        format!("/emails?with={searched}"),
        format!("/requests?organization={searched}"),
        format!("/dead-letters/groups/{group}"),
        format!("/dead-letters/{handle}"),
        format!("/dead-letters/{searched}"),
    ] {
        let page = console.get(&path).await;
        assert!(matches!(page.status, 200 | 404), "{path}: {page}");
        assert!(!page.body.contains("<script>alert"), "{path}");
        assert!(header(&page, "content-security-policy").starts_with("default-src 'none'"), "{path}");
    }
    let corrupt = console.get("/subscription?id=corrupt").await;
    assert!(corrupt.status == 200 && corrupt.body.contains("cannot be processed as it is"), "{corrupt}");
    let body = console.get(&format!("/dead-letters/{handle}/body")).await;
    assert_eq!(
        (header(&body, "content-type"), header(&body, "content-disposition")),
        ("application/octet-stream", "attachment")
    );
    worker.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_emails_are_shown_readdressed_retried_and_dropped() {
    let bed = TestBed::new("console-emails").await;
    let is_unwilling = Arc::new(AtomicBool::new(true));
    let sink = SmtpSink::scripted(Tls::No, {
        let is_unwilling = Arc::clone(&is_unwilling);
        move |step, _| match step {
            Step::Rcpt if is_unwilling.load(Ordering::Relaxed) => Action::Answer("550 5.1.1 no such <b>user</b>"),
            _ => Action::Ok,
        }
    })
    .await;
    populate(&bed).await;
    let more = (0..4).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(more).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for index in 0..4 {
        bed.command(&cancellation(&format!("cancel-{index}"), &format!("sub-{index}"))).await;
    }
    let console = WebProcess::console(&bed, &["--allow-changes"], &[]);
    let field = |index: usize, page: &str| {
        let values = page.split("name=\"entry\" value=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let values: Vec<String> = values.map(|value| value.replace("&quot;", "\"")).collect();
        values.into_iter().find(|value| value.contains(&format!("\"sub-{index}\""))).unwrap()
    };
    let list = eventually("four failed emails", || async {
        let list = console.get("/emails").await;
        (list.body.matches("name=\"entry\"").count() == 4).then_some(list)
    })
    .await;
    assert!(list.body.contains("no such &lt;b&gt;user"), "{list}");
    let one = console.get(&format!("/emails/one?entry={}", percent_encoded(&field(0, &list.body)))).await;
    assert!(one.body.contains("acc@home.example") && one.body.contains("<iframe"), "{one}");
    let html = console.get(&format!("/emails/one/html?entry={}", percent_encoded(&field(0, &list.body)))).await;
    let policy = header(&html, "content-security-policy");
    assert!(
        policy.contains("sandbox") && policy.contains("img-src data:") && html.body.contains("<!doctype html>"),
        "{}",
        html.headers
    );

    // A filter that selects nothing changes nothing.
    let none =
        change(&console, &console.submit("/emails/change", &[("action", "retry-all"), ("with", "nobody")]).await).await;
    assert!(none.contains("0 emails"), "{none}");
    let nothing = console.submit("/emails/change", &[("action", "retry-selected")]).await;
    assert_eq!(nothing.status, 422, "{nothing}");
    let wrong = [("action", "address-selected"), ("entry", &field(0, &list.body)), ("address", "no address")];
    assert_eq!(console.submit("/emails/change", &wrong).await.status, 422);

    is_unwilling.store(false, Ordering::Relaxed);
    // One to another address, one to the corrected address, one dropped, the rest as it is.
    let there = [("action", "address-selected"), ("entry", &field(0, &list.body)), ("address", "new@home.example")];
    let done = change(&console, &console.submit("/emails/change", &there).await).await;
    assert!(done.contains(">done<") && done.contains("1 email"), "{done}");
    let corrected = doc! { "$set": { "manager.email": "corrected@home.example" } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, corrected).await.unwrap();
    let current = [("action", "readdress-selected"), ("entry", &field(1, &list.body))];
    change(&console, &console.submit("/emails/change", &current).await).await;
    let mut drop = vec![("action", "drop-selected".to_owned()), ("entry", field(2, &list.body))];
    let asked = console
        .submit("/emails/change", &drop.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
        .await;
    assert!(asked.status == 200 && asked.body.contains("permanently"), "{asked}");
    drop.push(("confirmed", "yes".to_owned()));
    let drop: Vec<(&str, &str)> = drop.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let dropped = change(&console, &console.submit("/emails/change", &drop).await).await;
    assert!(dropped.contains("Dropped 1 email"), "{dropped}");
    // The same again: it is gone, and nothing claims otherwise.
    let again = change(&console, &console.submit("/emails/change", &drop).await).await;
    assert!(again.contains(">failed<") && again.contains("No longer failed"), "{again}");
    change(&console, &console.submit("/emails/change", &[("action", "retry-all"), ("with", "sub-3")]).await).await;
    bed.outboxes_empty().await;
    let mut sent: Vec<String> = sink.emails().into_iter().flat_map(|email| email.to).collect();
    sent.sort();
    assert_eq!(sent, ["acc@home.example", "corrected@home.example", "new@home.example"]);
    let timeline = console.get("/subscription?id=sub-2").await;
    assert!(timeline.body.contains(">dropped<"), "{timeline}");
    assert!(console.get("/").await.body.contains("Drop 1 failed email"));
    worker.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_replayed_and_dropped_and_nobody_is_locked_out() {
    let bed = TestBed::new("console-letters").await;
    init(&bed);
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, "file:///tmp").await;
    for index in 0..120 {
        let body = json!({ "specversion": "1.0", "id": format!("dl-{index}"), "source": "test", "type": "subscription.cancellation",
            "time": "2026-11-01T00:00:00Z", "data": { "organization_id": "org", "subscription_id": format!("sub-{index}") } });
        bed.publish("subscription.cancellation", body.to_string().as_bytes()).await;
    }
    // One that no replay can send anywhere.
    let queue = format!("{}.dead-letters", bed.prefix);
    let options = BasicPublishOptions::default();
    bed.channel
        .basic_publish("".into(), queue.as_str().into(), options, b"{}", BasicProperties::default())
        .await
        .unwrap();
    let console = WebProcess::console(&bed, &["--allow-changes"], &[]);
    let page = eventually("121 dead letters", || async {
        console.submit("/dead-letters/refresh", &[]).await;
        let page = console.get("/dead-letters").await;
        page.body.contains(">121 in 2 groups").then_some(page)
    })
    .await;
    // While somebody looks, others work.
    let other = offramp(&bed).args(["dead-letters", "list"]).output().unwrap();
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));

    let groups: Vec<String> = page
        .body
        .split("href=\"/dead-letters/groups/")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    let first = console.get(&format!("/dead-letters/groups/{}", groups[0])).await;
    assert_eq!(first.body.matches("type=\"checkbox\"").count(), 100, "rows are bounded");
    assert!(first.body.contains("1 to 100 of 120"));
    let next = console.get(&format!("/dead-letters/groups/{}?from=100", groups[0])).await;
    assert_eq!(next.body.matches("type=\"checkbox\"").count(), 20);
    let ids: Vec<&str> =
        first.body.split("name=\"id\" value=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();

    let unroutable = change(
        &console,
        &console.submit("/dead-letters/change", &[("action", "replay-group"), ("group", &groups[1])]).await,
    )
    .await;
    assert!(unroutable.contains(">failed<") && unroutable.contains("no work queue"), "{unroutable}");
    let asked =
        console.submit("/dead-letters/change", &[("action", "drop-selected"), ("id", ids[0]), ("id", ids[1])]).await;
    assert!(asked.body.contains("Drop 2 dead letters?"), "{asked}");
    let digest = asked.body.split("name=\"digest\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let chosen = |digest| {
        [("action", "drop-selected"), ("id", ids[0]), ("id", ids[1]), ("digest", digest), ("confirmed", "yes")]
    };
    // What was confirmed, and nothing else.
    let other = console.submit("/dead-letters/change", &chosen("another")).await;
    assert!(other.status == 422 && other.body.contains("have changed since"), "{other}");
    let drop = chosen(digest);
    let dropped = change(&console, &console.submit("/dead-letters/change", &drop).await).await;
    assert!(dropped.contains(">done<") && dropped.contains("Dropped 2 dead letters"), "{dropped}");
    let again = console.submit("/dead-letters/change", &drop).await;
    assert_eq!(again.status, 422, "{again}");

    // Two operators at once: one of them waits for the other, and together they replay everything once.
    let replay = [("action", "replay-group"), ("group", groups[0].as_str())];
    let both =
        [console.submit("/dead-letters/change", &replay).await, console.submit("/dead-letters/change", &replay).await];
    let (one, other) = tokio::join!(change(&console, &both[0]), change(&console, &both[1]));
    let has_all = |text: &str| text.contains(">done<") && text.contains("Sent back 118 dead letters");
    assert!(has_all(&one) != has_all(&other), "one replays all, the other is told: {one} {other}");
    let told = if has_all(&one) { &other } else { &one };
    assert!(told.contains(">failed<") && told.contains("No longer there"), "{told}");
    eventually("the replayed ones, dead again", || async {
        console.submit("/dead-letters/refresh", &[]).await;
        console.get("/dead-letters").await.body.contains(">119 in 2 groups")
    })
    .await;
    worker.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_decided() {
    let bed = TestBed::new("console-requests").await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, "file:///tmp").await;
    let request = command(
        "request",
        "subscription.cancellation-request",
        json!({ "organization_id": "org", "subscription_id": "sub",
        "actor": { "role": "client", "account_id": "acc", "name": "Zoé" }, "reason": "Nous déménageons." }),
    );
    bed.command(&request).await;
    let worker_address = format!("127.0.0.1:{}", worker.port());
    let console =
        WebProcess::console(&bed, &["--allow-changes"], &[("OFFRAMP_CONSOLE_WORKERS", worker_address.as_str())]);
    let list = eventually("the request", || async {
        let list = console.get("/requests").await;
        list.body.contains("Nous déménageons.").then_some(list)
    })
    .await;
    assert!(list.body.contains("/subscription?id=sub"), "{list}");
    assert!(!console.get("/requests?days=3").await.body.contains("Nous déménageons."));
    let page = console.get("/subscription?id=sub").await;
    assert!(page.body.contains("action=\"/requests/decide\""), "{page}");

    let decision = |day| {
        [
            ("subscription", "sub"),
            ("organization", "org"),
            ("decision", "accept"),
            ("note", "Bonne route !\r\nÀ bientôt."),
            ("final_billing_date", day),
        ]
    };
    let wrong = change(&console, &console.submit("/requests/decide", &decision("2001-01-02")).await).await;
    assert!(wrong.contains(">failed<") && wrong.contains("not_a_billing_date"), "{wrong}");
    let accepted = change(&console, &console.submit("/requests/decide", &decision("")).await).await;
    assert!(accepted.contains(">done<") && accepted.contains("The last day of access is"), "{accepted}");
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let decided = document.get_document("cancellation_request").unwrap();
    assert_eq!(decided.get_str("decision").unwrap(), "accept");
    assert_eq!(decided.get_str("note").unwrap(), "Bonne route !\nÀ bientôt.");
    let page = console.get("/subscription?id=sub").await;
    assert!(page.body.contains("Request accepted") && page.body.contains("somebody on this machine"), "{page}");
    eventually("a ready worker on the overview", || async { console.get("/state").await.body.contains(">ready<") })
        .await;
    worker.stop().await;
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_emails_are_shown_where_they_are_kept() {
    let bed = TestBed::new("console-kept").await;
    init(&bed);
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(subscription("sub-2", "org", "acc")).await.unwrap();
    let console = WebProcess::console(&bed, &[], &[]);
    let link = async |id: &str| {
        let page = console.get(&format!("/subscription?id={id}")).await;
        assert!(page.body.contains("accepted by the mail server"), "{page}");
        page.body.split("href=\"/emails/sent?id=").nth(1).map(|rest| rest.split('"').next().unwrap().to_owned())
    };

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let is_sent = async |id: &str| {
        let filter = doc! { "_id": id, "notifications.0.sent_at": { "$exists": true }, "outbox": [] };
        eventually("a sent email", || async {
            bed.collection("subscriptions").find_one(filter.clone()).await.unwrap()
        })
        .await;
    };
    bed.command(&cancellation("cancel-1", "sub")).await;
    is_sent("sub").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(link("sub").await, None, "by default they are not kept");

    let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_KEEP_EMAILS_DAYS", "7")]).await;
    bed.command(&cancellation("cancel-2", "sub-2")).await;
    is_sent("sub-2").await;
    // Even one that is told to stop at once writes what it has sent.
    assert_eq!(worker.stop().await.code(), Some(0));
    let id = link("sub-2").await.expect("a link to the email");
    let page = console.get(&format!("/emails/sent?id={id}")).await;
    assert!(page.body.contains("acc@home.example") && page.body.contains("<iframe"), "{page}");
    let html = console.get(&format!("/emails/sent/html?id={id}")).await;
    assert!(html.body.contains("<!doctype html>") && header(&html, "content-security-policy").contains("sandbox"));
    assert_eq!(console.get("/emails/sent?id=nothing").await.status, 404);

    let kept = bed.collection("sent_emails").find_one(doc! {}).await.unwrap().unwrap();
    let (sent, expires) = (kept.get_datetime("sent_at").unwrap(), kept.get_datetime("expires_at").unwrap());
    assert_eq!(expires.timestamp_millis() - sent.timestamp_millis(), 7 * 24 * 60 * 60 * 1_000);
    let indexes: Vec<_> = bed.collection("sent_emails").list_indexes().await.unwrap().try_collect().await.unwrap();
    let expiry = indexes.iter().find_map(|index| index.options.as_ref()?.expire_after);
    assert_eq!(expiry, Some(std::time::Duration::ZERO), "MongoDB deletes them");
    bed.remove().await;
}

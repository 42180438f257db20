//! `import`: what is refused, kept and warned of.

use bson::{DateTime, Document, doc};

use super::{examples, fails, run, succeeds};
use offramp_testkit::fixtures::{account, organization, subscription};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::offramp;

#[tokio::test(flavor = "multi_thread")]
async fn import_validates_all_lines_first_and_keeps_other_fields() {
    let bed = TestBed::new("import").await;
    let documents = std::fs::read_to_string(examples().join("documents.jsonl")).unwrap();
    let import = |input: &str| run(&mut offramp(&bed), &["import", "-"], input);

    let bad = documents.replace("\"day\": 15", "\"day\": 32");
    let ran = import(&bad);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 5: subscriptions sub-1001: billing.day: 32"), "{}", ran.stderr);
    let ran = import(&format!("{documents}{{\"collection\": \"members\", \"document\": {{}}}}\n"));
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 11: collection: \"members\" is not one of"), "{}", ran.stderr);
    let twice = documents.replace("\"day\": 15", "\"day\": 15, \"day\": 16");
    let ran = import(&twice);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 5: document.billing: the key `day` is given twice"), "{}", ran.stderr);
    assert_eq!(bed.document("subscriptions", "sub-1002").await, None, "nothing was imported");

    let ran = import(&documents);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("2 organizations, 2 accounts, 6 subscriptions"), "{}", ran.stdout);
    assert!(ran.stdout.contains("10 created, 0 changed, 0 unchanged"), "{}", ran.stdout);
    let first = bed.document("subscriptions", "sub-1001").await.unwrap();
    assert_eq!(first.get("version"), None, "as the file has it");
    let scheduled = bed.document("subscriptions", "sub-1004").await.unwrap();
    assert_eq!(
        scheduled.get_datetime("ends_at").unwrap(),
        &DateTime::parse_rfc3339_str("2026-06-01T04:00:00Z").unwrap()
    );
    assert_eq!(scheduled.get_i32("version").unwrap(), 3);

    let theirs = doc! { "$set": { "crm": { "$literal": "theirs" }, "outbox": [], "plan.name": "changed" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub-1001" }, theirs).await.unwrap();
    let ran = import(&documents);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("0 created, 1 changed, 9 unchanged"), "{}", ran.stdout);
    let again = bed.document("subscriptions", "sub-1001").await.unwrap();
    assert_eq!(again.get_document("crm").unwrap(), &doc! { "$literal": "theirs" });
    assert!(again.get_array("outbox").unwrap().is_empty());
    assert_eq!(again.get_document("plan").unwrap(), first.get_document("plan").unwrap());
    assert_eq!(again.get_i32("version").unwrap(), 1, "an import increments the version");
    let again = bed.document("subscriptions", "sub-1004").await.unwrap();
    assert_eq!(again.get_i32("version").unwrap(), 3, "the file has nothing new for it");

    let ran = run(&mut offramp(&bed), &["import", "-", "--force"], &bad.replace("Natation mensuelle", "$name"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let forced = bed.document("subscriptions", "sub-1001").await.unwrap();
    assert_eq!(forced.get_document("billing").unwrap().get_i32("day").unwrap(), 32);
    assert_eq!(
        forced.get_document("plan").unwrap().get_str("name").unwrap(),
        "$name",
        "a value is never read as an operator"
    );

    let many: Vec<String> = (0..1200)
        .map(|number| {
            let document = serde_json::to_value(organization(&format!("org-{number}"))).unwrap();
            serde_json::json!({ "collection": "organizations", "document": document }).to_string()
        })
        .collect();
    assert_eq!(import(&many.join("\n")).code, Some(0));
    assert_eq!(bed.collection("organizations").count_documents(doc! {}).await.unwrap(), 1202);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_keeps_what_offramp_decided() {
    let bed = TestBed::new("import-state").await;
    let documents = std::fs::read_to_string(examples().join("documents.jsonl")).unwrap();
    let import = |flags: &[&str]| {
        let arguments: Vec<&str> = ["import", "-"].iter().chain(flags).copied().collect();
        succeeds(&mut offramp(&bed), &arguments, &documents).stdout
    };
    let status =
        async || bed.document("subscriptions", "sub-1004").await.unwrap().get_str("status").unwrap().to_owned();

    let printed = import(&["--dry-run"]);
    assert!(printed.contains("10 to create, 0 to change, 0 unchanged"), "{printed}");
    assert_eq!(bed.document("subscriptions", "sub-1004").await, None, "a dry run writes nothing");
    import(&[]);
    assert_eq!(status().await, "cancellation_scheduled");

    let ended = doc! { "$set": { "status": "cancelled", "ended_on": "2026-05-31", "activities": [] }, "$unset": { "billing.next_on": "" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub-1004" }, ended).await.unwrap();
    let printed = import(&[]);
    assert!(
        printed.contains("in 1 of them, what Offramp wrote is kept (activities, billing.next_on, status)"),
        "{printed}"
    );
    assert_eq!(status().await, "cancelled");
    let printed = import(&["--overwrite-state", "--dry-run"]);
    assert!(printed.contains("0 to create, 1 to change, 9 unchanged"), "{printed}");
    assert_eq!(status().await, "cancelled");
    import(&["--overwrite-state"]);
    assert_eq!(status().await, "cancellation_scheduled");

    let removed = doc! { "_id": "sub-1004", "organization_id": "org-1", "account_id": "acc-1", "status": "removed" };
    bed.collection("subscriptions").replace_one(doc! { "_id": "sub-1004" }, removed).await.unwrap();
    let printed = import(&[]);
    assert!(printed.contains("1 subscription left alone"), "{printed}");
    assert_eq!(bed.document("subscriptions", "sub-1004").await.unwrap().get("participant"), None);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_checks_references_and_repeats() {
    let bed = TestBed::new("import-references").await;
    let line = |collection: &str, document: Document| {
        serde_json::json!({ "collection": collection, "document": document }).to_string()
    };
    let account = |id: &str, organization: &str| line("accounts", account(id, organization));
    let organizations = ["org-1", "org-2"].map(|id| line("organizations", organization(id)));
    succeeds(&mut offramp(&bed), &["import", "-"], &organizations.join("\n"));

    let file = [account("acc-1", "org-1"), account("acc-2", "org-9"), account("acc-1", "org-2")].join("\n");
    let ran = run(&mut offramp(&bed), &["import", "-"], &file);
    assert_eq!(ran.code, Some(1));
    for sentence in [
        "line 3: accounts acc-1 is already in line 1",
        "line 2: accounts acc-2 refers to organizations org-9, which is neither in the file nor in the database",
    ] {
        assert!(ran.stderr.contains(sentence), "{}", ran.stderr);
    }
    assert_eq!(bed.document("accounts", "acc-1").await, None);

    succeeds(&mut offramp(&bed), &["import", "-"], &account("acc-1", "org-1"));
    let ours = line("subscriptions", subscription("sub-0", "org-1", "acc-1"));
    let subscription = format!("{ours}\n{}", line("subscriptions", subscription("sub-1", "org-2", "acc-1")));
    let sentence = "subscriptions sub-1 refers to accounts acc-1, which belongs to another organization";
    fails(&mut offramp(&bed), &["import", "-"], &subscription, 1, sentence);
    succeeds(&mut offramp(&bed), &["import", "-", "--force"], &subscription);
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_warns_of_what_is_probably_not_meant() {
    let bed = TestBed::new("import-doubts").await;
    let line = |collection: &str, document: Document| {
        serde_json::json!({ "collection": collection, "document": document }).to_string()
    };
    // The organization's time zone is known from the database, the other's from a later line of the file.
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    let mut nobody = account("acc", "org");
    nobody.get_document_mut("manager").unwrap().extend(doc! { "email": "nobody", "locale": "english!" });
    let end = |id: &str, owner: &str, payer: &str, at: &str| {
        let mut document = subscription(id, owner, payer);
        let at = DateTime::parse_rfc3339_str(at).unwrap();
        let actor = doc! { "role": "admin", "id": "admin-1" };
        document.extend(doc! {
            "status": "cancellation_scheduled", "ends_on": "2199-06-14", "ends_at": at,
            "cancellation": { "by": "admin", "via": "purchases", "scheduled_at": at, "actor": actor },
        });
        document
    };
    let mut odd = subscription("odd", "org", "acc");
    odd.insert("expire_on", "2199-12-31");
    odd.get_document_mut("billing").unwrap().insert("next_on", "2199-06-16");
    let mut paris = organization("paris");
    paris.insert("timezone", "Europe/Paris");
    let file = [
        line("accounts", nobody),
        line("accounts", account("payer", "paris")),
        line("subscriptions", end("right", "org", "acc", "2199-06-15T05:00:00Z")),
        line("subscriptions", end("wrong", "org", "acc", "2200-06-15T05:00:00Z")),
        line("subscriptions", end("far", "paris", "payer", "2199-06-15T05:00:00Z")),
        line("subscriptions", odd),
        line("organizations", paris),
    ]
    .join("\n");
    for flags in [&["--dry-run"][..], &[]] {
        let ran = succeeds(&mut offramp(&bed), &[&["import", "-"], flags].concat(), &file);
        for (warning, says) in [
            ("line 1: accounts acc: manager.email", "it is no email address"),
            ("line 1: accounts acc: manager.locale", "it is no language tag"),
            ("line 4: subscriptions wrong: ends_at", "2199-06-14 is over at 2199-06-15"),
            ("line 5: subscriptions far: ends_at", "Europe/Paris"),
            ("line 6: subscriptions odd: billing.next_on", "2199-06-16 is no billing date"),
            ("line 6: subscriptions odd: expire_on", "probably `expires_on` is meant"),
        ] {
            let printed = format!("standard input: warning: {warning}: ");
            let found = ran.stderr.lines().find(|line| line.starts_with(&printed) && line.contains(says));
            assert!(found.is_some(), "{warning}: {}", ran.stderr);
        }
        assert_eq!(ran.stderr.lines().count(), 6, "{}", ran.stderr);
    }
    assert!(bed.document("subscriptions", "odd").await.is_some(), "a warning prevents nothing");

    let many: Vec<String> = (0..27)
        .map(|number| {
            let mut organization = organization(&format!("org-{number}"));
            organization.insert("locale", "english!");
            line("organizations", organization)
        })
        .collect();
    let ran = succeeds(&mut offramp(&bed), &["import", "-", "--dry-run"], &many.join("\n"));
    assert_eq!(ran.stderr.lines().count(), 21);
    assert!(ran.stderr.contains("… and 7 more warnings"), "{}", ran.stderr);
    bed.remove().await;
}

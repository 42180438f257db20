//! Template files from a directory: overrides, added languages, and problems.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use offramp_domain::notification::Notification;
use offramp_mail::Templates;

use super::sample;

fn problems(files: &[(&str, &str)]) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let prefix = format!("{}/", directory.path().display());
    match Templates::load(Some(directory.path())) {
        Ok(_) => vec![],
        Err(problems) => problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect(),
    }
}

#[track_caller]
fn check_problem(file: &str, text: &str, expected: &str) {
    assert_eq!(problems(&[(file, text)]), [format!("{file}{expected}")]);
}

#[test]
fn template_problems_name_file_and_line() {
    let mail = "fr/request-declined.account_manager.md";
    check_problem(mail, "Subject: x\n\nBonjour {{manager.nom}}\n", ":3: unknown name `manager.nom`");
    check_problem(mail, "Subject: {{plan_name}}\n\nx\n", ":1: unknown name `plan_name`");
    check_problem(mail, "Subject: x\nPreview: {{plan_name}}\n\nx\n", ":2: unknown name `plan_name`");
    check_problem(mail, "Subject: x\n\nx\n{{#if\u{20}paticipant}}\nx\n{{/if}}\n", ":4: unknown name `paticipant`");
    check_problem(mail, "Subject: x\n\n[x](https://a.example/{{url}})\n", ":3: unknown name `url`");
    check_problem(
        mail,
        "Subject: x\n\n{{#if note}}\n[x]({{note}})\n{{/if}}\n",
        ":4: invalid link `{{note}}`: it must begin with https://, http:// or mailto:",
    );
    check_problem(mail, "Subject: {{#if subject}}x{{/if}}\n\nx\n", ":1: unknown name `subject`");
    check_problem(mail, "Subject: x\n\nx\n\\{{#if colour}}\n", ":4: `\\{{` is not supported");
    check_problem(mail, "Subject: x\n\n{{{{if note}}}}\n{{{{/if}}}}\n", ":3: `{{{{` is not supported");
    let chain = "Subject: x\n\n{{#if note}}\n{{else if nots}}\n{{else}}\n{{nota}}\n{{/if}}\n";
    assert_eq!(
        problems(&[(mail, chain)]),
        [format!("{mail}:3: unknown name `nots`"), format!("{mail}:6: unknown name `nota`")]
    );
    check_problem(
        mail,
        "Subject: x\n\nx\n{{#unless refund}}\n{{{note}}}\n{{/unless}}",
        ":5: {{{note}}} is not escaped, so a fact could inject HTML: use {{note}}",
    );
    check_problem(
        mail,
        "Subject: x\n\n{{card}}\n",
        ":3: `card` has no text; use one of its parts, such as `card.brand`",
    );
    check_problem(
        mail,
        "Subject: x\n\n{{#each note}}\n{{/each}}",
        ":3: unknown block `each`; only {{#if …}} and {{#unless …}} are supported",
    );
    check_problem(
        mail,
        "Subject: x\n\n{{lookup card note}}",
        ":3: unknown helper `lookup`; only {{#if …}} and {{#unless …}} are supported",
    );
    check_problem(mail, "Subject: x\n\n{{#if note includeZero=true}}x{{/if}}", ":3: {{#if …}} takes exactly one name");
    check_problem(
        mail,
        "Subject: x\n\n{{#if refund}}{{refund}}{{/if}}\n",
        ":3: `refund` has no text; use it as a condition: {{#if refund}}",
    );
    let misplaced = "`{{> facts}}` is inside a sentence; a partial must be on its own line, below the subject";
    check_problem(mail, "Subject: {{> facts}}\n\nx\n", &format!(":1: {misplaced}"));
    check_problem(mail, "Subject: x\n\nx\n\ny {{> facts}}\n", &format!(":5: {misplaced}"));
    check_problem(mail, "Bonjour\n", ":1: must begin with a line `Subject: …`");
    check_problem(mail, "Subject: x\nBonjour\n", ":2: an empty line must follow `Subject: …` and `Preview: …`");
    check_problem(
        mail,
        "Subject: x\n\nx\n\n* y\n",
        ":5: a fact must begin with its label in bold: `- **label:** value`",
    );
    check_problem(mail, "Subject: x\n\nx\n{{> facst}}\n", ":4: unknown partial `facst`: the file _facst.md is missing");
    check_problem(
        "fr/_facts.md",
        "{{> facts}}\n",
        ":1: the partial `facts` includes itself, or is nested 8 levels deep",
    );
    check_problem(
        mail,
        "Subject: x\n\n# y\n\n{{note}}\n",
        ":5: `note` is optional: put it inside {{#if note}}…{{/if}} (found with \
         request-declined.account_manager, minimal)",
    );
    check_problem(
        mail,
        "Subject: x\nPreview: {{note}}\n\n# y\n",
        ":2: `note` is optional: put it inside {{#if note}}…{{/if}} (found with \
         request-declined.account_manager, minimal)",
    );
    check_problem("fr/_unused.md", "x", ": not used by any email of this language");
    assert_eq!(problems(&[("français/_x.md", "x")]), ["français: not a language tag such as `pt` or `fr-CA`"]);
    assert!(problems(&[(mail, "Subject: x\n\n{{#if note}}\nx\n")])[0].starts_with(&format!("{mail}:")), "unclosed");
    assert!(problems(&[("fr/request-declined.md", "x")])[0].contains("not a template"));
    assert_eq!(problems(&[("README.md", "x"), (".git", "x"), ("fr/notes.md~", "x")]), Vec::<String>::new());
}

#[test]
fn design_problems_name_file_and_line() {
    check_problem("_notice.mjml", "<mj-text>\n{{colour}}{{> content}}</mj-text>", ":2: unknown name `colour`");
    check_problem(
        "_button.mjml",
        "<mj-button href=\"{{> address}}\">\n{{> contents}}{{> content}}</mj-button>",
        ":2: _button.mjml has no place {{> contents}}; its places: {{> address}}, {{> content}}",
    );
    check_problem(
        "_paragraph.mjml",
        "<mj-text>{{#if note}}{{#unless reason}}\n{{> contents}}{{/unless}}{{/if}}{{> content}}</mj-text>",
        ":2: _paragraph.mjml has no place {{> contents}}; its places: {{> content}}",
    );
    for label in ["", "{{!-- {{> label}} --}}"] {
        check_problem(
            "_fact.mjml",
            &format!("<tr>{label}<td>{{{{> content}}}}</td></tr>"),
            ": the place {{> label}} is missing",
        );
    }
    check_problem(
        "_headline.mjml",
        "<mj-text>\n{{>content}}</mj-text>",
        ":2: write the place as {{> content}}, with exactly one space",
    );
    let broken = problems(&[("_notice.mjml", "<mj-text>{{> content}}")]);
    assert!(broken[0].starts_with("_layout.mjml: invalid MJML: "), "{broken:?}");
    let optional = problems(&[("_paragraph.mjml", "<mj-text>{{plan}}{{> content}}</mj-text>")]);
    assert!(optional[0].starts_with("_layout.mjml: `plan` is optional"), "{optional:?}");
}

#[test]
fn problems_in_partials_name_the_partial() {
    let found = problems(&[("fr/_greeting.md", "Bonjour\n{{manager.name}},\n")]);
    assert_eq!(
        found,
        [
            "cancelled-by-admin.account_manager",
            "cancelled-by-client.account_manager",
            "cancellation-requested.account_manager"
        ]
        .iter()
        .chain(&["card-expiring.account_manager", "payment-failed.account_manager", "removed-by-admin.account_manager"])
        .chain(&["request-accepted.account_manager", "request-declined.account_manager"])
        .map(|mail| format!(
            "fr/_greeting.md:1: `manager.name` is optional: put it inside {{{{#if manager.name}}}}…{{{{/if}}}} \
                 (found with {mail}, minimal)"
        ))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
}

#[test]
fn override_files_replace_built_in_ones_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("fr_CA")).unwrap();
    let file = directory.path().join("fr_CA/payment-failed.account_manager.md");
    fs::write(file, "Subject: Hé\u{a0}! {{amount}}\r\n\r\nSalut\r\n").unwrap();
    let templates = Templates::load(Some(directory.path())).unwrap();
    let render = |locale: &str| templates.render(&Notification { locale: locale.to_owned(), ..sample() }).unwrap();
    assert_eq!(render("fr-CA").subject, "Hé\u{a0}! 49,99\u{a0}$");
    let rendered = render("fr-CA");
    assert!(rendered.text.starts_with("Salut\n\nUne question?"), "the footer is the language's: {}", rendered.text);
    assert!(rendered.html.contains(">Salut<") && !rendered.html.contains("a été refusé"), "{}", rendered.html);
    assert!(render("fr-FR").text.contains("a été refusé"), "other regions keep the language's");
}

#[test]
fn a_language_is_added_by_copying_a_folder() {
    let directory = tempfile::tempdir().unwrap();
    copy(&templates_directory().join("es"), &directory.path().join("pt"));
    let templates = Templates::load(Some(directory.path())).unwrap();
    let rendered = templates.render(&Notification { locale: "pt-BR".to_owned(), ..sample() }).unwrap();
    assert_eq!(rendered.language, "pt-BR");
    assert!(rendered.text.contains("18 de junho de 2026"), "{}", rendered.text);

    fs::remove_file(directory.path().join("pt/card-expiring.account_manager.md")).unwrap();
    // An invalid file is not missing, and unused files are not reported while it might use them.
    let mail = directory.path().join("pt/card-expiring.organization_contact.md");
    let text = fs::read_to_string(&mail).unwrap();
    fs::write(&mail, text.replace("# ", "## ")).unwrap();
    fs::write(directory.path().join("pt/_extra.md"), "x").unwrap();
    let problems = Templates::load(Some(directory.path())).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    fs::write(&mail, text).unwrap();
    fs::remove_file(directory.path().join("pt/_extra.md")).unwrap();

    let problems = Templates::load(Some(directory.path())).unwrap_err();
    let expected = "pt/card-expiring.account_manager.md: missing: this email could not be sent in this language";
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
}

fn templates_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

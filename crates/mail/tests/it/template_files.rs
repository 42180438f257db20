//! Template files from a directory: overrides, added languages, and problems.

use std::fs;
use std::path::{Path, PathBuf};

use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_mail::samples::samples;
use offramp_mail::{EmailKind, Templates};

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
        ":4: invalid link `{{note}}`: it must begin with https://, http://, mailto: or tel:, or be one of {{admin_url}}, \
         {{admin_account_url}}, {{account_url}}, {{payment_url}}, {{payment_method_url}}, {{organization.website}}",
    );
    check_problem(mail, "Subject: {{#if subject}}x{{/if}}\n\nx\n", ":1: unknown name `subject`");
    check_problem(
        mail,
        "Subject: x\n\n{{{{if note}}}}\n{{{{/if}}}}\n",
        ":3: raw blocks `{{{{…}}}}` are not supported; to show braces, write \\{{",
    );
    let chain = "Subject: x\n\n{{#if note}}\n{{else if nots}}\n{{else}}\n{{nota}}\n{{/if}}\n";
    assert_eq!(
        problems(&[(mail, chain)]),
        [format!("{mail}:3: unknown name `nots`"), format!("{mail}:6: unknown name `nota`")]
    );
    check_problem(
        mail,
        "Subject: x\n\nx\n{{#unless refund}}\n{{{note}}}\n{{/unless}}",
        ":5: `{{{note}}}` is not escaped, so a fact could inject HTML: use {{note}}",
    );
    check_problem(
        mail,
        "Subject: x\n\n{{card}}\n",
        ":3: `card` has no text; use one of its parts, such as `card.brand`",
    );
    check_problem(mail, "Subject: x\n\n{{#each note}}\n{{/each}}", ":3: `note` is not a list");
    check_problem(
        mail,
        "Subject: x\n\n{{shout note}}",
        ":3: unknown helper `shout`; there are: if, unless, each, with, lookup, len, eq, ne, gt, gte, lt, lte, and, or, not",
    );
    check_problem(mail, "Subject: x\n\n{{#note}}x{{/note}}", ":3: `{{#note}}`: write {{#if note}}…{{/if}}");
    check_problem(mail, "Subject: x\n\n{{#if note plan}}x{{/if}}", ":3: `if` takes exactly one name");
    check_problem(mail, "Subject: x\n\n{{#if (eq plan)}}x{{/if}}", ":3: `eq` takes exactly 2 values");
    check_problem(mail, "Subject: x\n\n{{#if (eq plam \"a\")}}x{{/if}}", ":3: unknown name `plam`");
    check_problem(mail, "Subject: x\n\n{{#with card}}{{last5}}{{/with}}", ":3: unknown name `last5`");
    check_problem(mail, "Subject: x\n\n{{#with card}}{{plan}}{{/with}}", ":3: unknown name `plan`");
    check_problem(mail, "Subject: x\n\n{{@index}}", ":3: `@index` exists only inside {{#each …}}");
    check_problem(
        mail,
        "Subject: x\n\n{{> greeting account_url=note}}",
        ":3: the parameter `account_url` is used as a link, so only another link can be its value",
    );
    check_problem(
        mail,
        "Subject: x\n\n{{#if refund}}{{refund}}{{/if}}\n",
        ":3: `refund` has no text; it can be used in conditions: {{#if refund}}",
    );
    check_problem(mail, "Subject:\n\nx\n", ":1: the subject is empty: write it after `Subject:`");
    check_problem(mail, "Subject: x\n\n- **a:**\n", ":3: this fact has no value: `- **label:** value`");
}

#[test]
fn structure_problems_name_file_and_line() {
    let mail = "fr/request-declined.account_manager.md";
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
        "fr/_ending.md",
        "{{> ending}}\n",
        ":1: the partial `ending` includes itself, or is nested 8 levels deep",
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
    check_problem(mail, "Subject: x\n\n{{#if note}}\nx\n", ":3: `{{#if note}}` is never closed: {{/if}} is missing");
    check_problem(mail, "Subject: x\n\nx\n\n{{/if}}\n", ":5: `{{/if}}` closes nothing: no block is open");
    check_problem(
        mail,
        "Subject: x\n\n{{^note}}\nx\n{{/note}}\n",
        ":3: `{{^note}}`: write {{#unless note}}…{{/unless}}",
    );
    let empty = problems(&[(mail, "Subject: {{#if reason}}x{{/if}}\n\nx\n")]);
    assert!(empty[0].starts_with(&format!("{mail}:1: the subject is empty when")), "{empty:?}");
    let twice = problems(&[("fr-CA/_greeting.md", "x"), ("fr_CA/_greeting.md", "y")]);
    assert!(twice.iter().any(|it| it.starts_with("fr_CA: a second folder for fr-CA, beside ")), "{twice:?}");
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
    let headline = "<mj-text>\n{{>content}} {{~> content ~}}</mj-text>";
    assert_eq!(problems(&[("_headline.mjml", headline)]), Vec::<String>::new());
    let broken = problems(&[("_notice.mjml", "<mj-text>{{> content}}")]);
    assert!(broken[0].starts_with("_layout.mjml: invalid MJML: "), "{broken:?}");
    let optional = problems(&[("_paragraph.mjml", "<mj-text>{{plan}}{{> content}}</mj-text>")]);
    assert!(optional[0].starts_with("_layout.mjml: `plan` is optional"), "{optional:?}");
}

#[test]
fn problems_in_partials_name_the_partial() {
    let found = problems(&[("fr/_greeting.md", "Bonjour\n{{manager.name}},\n")]);
    assert!(!found.is_empty());
    for problem in found {
        let expected =
            "fr/_greeting.md:1: `manager.name` is optional: put it inside {{#if manager.name}}…{{/if}} (found with ";
        assert!(problem.starts_with(expected), "{problem}");
    }
}

/// Everything that Handlebars has, in both parts.
#[test]
fn templates_may_use_the_whole_language() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("en")).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join("en").join(name), text).unwrap();
    write(
        "payment-failed.account_manager.md",
        "Subject: {{amount}}{{#if (gt attempt 1)}} again{{/if}}\n\
         Preview: {{#unless (eq card.brand \"Visa\")}}other{{else}}{{card.brand}}{{/unless}}\n\n\
         {{!-- a comment\n\nwith **stars** and }} in it --}}\n\
         # Hello {{~#if manager.name~}} , {{manager.name}} {{~/if}} <{{card.last4}}>\n\n\
         {{~#if (and (eq raw.currency \"CAD\") (not refund))~}}\n\
         A **{{#if (eq \"a<b\" \"a<b\")}}b{{/if}}** \\{{braces}}\n\
         {{~/if~}}\n\n\
         {{> row label=\"Card, *the*\" value=card.brand}}\n\
         {{#each card as |part name|}}\n\
         - **{{name}}:** {{#if @first}}first{{/if}}{{../card.last4}}\n\
         {{/each}}\n\n\
         {{#each card as |part name|}}\n\
         {{#if (and @first @root.payment_method_url)}}\n\
         > Up to {{~ @root.amount ~}} ; until {{~ @root.amount ~}} !\n\n\
         [Pay with {{part}}]({{@root.payment_method_url}})\n\
         {{/if}}\n\
         {{/each}}\n\n\
         {{#with organization}}\n\
         By {{name}}\n\
         {{/with}}\n\n\
         {{#> box title=card.brand}}\n\
         Inside {{amount}}\n\
         {{/box}}\n\n\
         {{#*inline \"end\"}}\n\
         The end of {{what}}\n\
         {{/inline}}\n\
         {{> end what=amount}}\n\n\
         {{#if (and participant plan)}}\n\
         [Pay](https://pay.example/{{participant}}?plan={{plan}})\n\
         {{/if}}\n",
    );
    write("_row.md", "- **{{label}}:** {{value}} of {{manager.email}}\n");
    write("_box.md", "> {{title}}\n\n{{> @partial-block}}\n");
    let templates = Templates::load(Some(directory.path())).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let notification = Notification { locale: "en-CA".to_owned(), ..sample() };
    let rendered = templates.render(&notification).unwrap();
    assert_eq!(rendered.subject, "$49.99 again");
    assert_eq!(templates.preview(&notification).unwrap(), "Visa");
    let (text, html) = (&rendered.text, &rendered.html);
    let expected = "Hello, Marie Tremblay <4242>\n\nA b {{braces}}\n\n\
                    Card, *the*: Visa of marie.tremblay@example.com\n";
    assert!(text.starts_with(expected), "{text}");
    for line in [
        "brand: first4242",
        "Up to$49.99; until$49.99!",
        "Pay with Visa\nhttps://my.boreal.example/acc-0042/cards",
        "By Club Boréal",
        "Visa\n\nInside $49.99",
        "The end of $49.99",
        "https://pay.example/L%C3%A9a%20O%27Brien-Tremblay?plan=Natation%20%3C%2012%20ans",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    for part in [
        "Hello, <bdi>Marie Tremblay</bdi> &lt;4242&gt;",
        "A <strong>b</strong> {{braces}}",
        ">Card, *the*</th>",
        "By ",
        "Up to<bdi>$49.99</bdi>; until<bdi>$49.99</bdi>!",
        "Pay with Visa",
        "Inside <bdi>$49.99</bdi>",
        "href=\"https://pay.example/L%C3%A9a%20O%27Brien-Tremblay?plan=Natation%20%3C%2012%20ans\"",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
}

/// The page is mirrored, but not what keeps its own direction: phone numbers, addresses, what people wrote.
#[test]
fn a_language_written_from_right_to_left_is_added_by_copying_a_folder() {
    let directory = tempfile::tempdir().unwrap();
    copy(&templates_directory().join("en"), &directory.path().join("ar"));
    let templates = Templates::load(Some(directory.path())).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let samples = samples(Template::RequestDeclined, Recipient::AccountManager, "ar");
    let html = templates.render(&samples[0].notification).unwrap().html;
    for part in [
        "<html lang=\"ar\" dir=\"rtl\" ",
        "text-align:right;",
        "border-right:3px solid",
        "<blockquote dir=\"auto\" ",
        "<bdi style=\"white-space:nowrap\">514 555-0199</bdi>",
        "<bdi>https://boreal.example/</bdi>",
        "<bdi>1200, rue du Lac, Magog (Québec) J1X 2B4</bdi>",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    for part in ["dir=\"ltr\"", "direction:ltr", "text-align:left"] {
        assert!(!html.contains(part), "{part}: {html}");
    }
}

/// For emails of one's own.
#[test]
fn one_partial_has_every_fact() {
    let directory = tempfile::tempdir().unwrap();
    for locale in ["en", "es", "fr"] {
        let folder = directory.path().join(locale);
        fs::create_dir_all(&folder).unwrap();
        for kind in EmailKind::all() {
            fs::write(folder.join(format!("{kind}.md")), "Subject: x\n\n{{> facts}}\n").unwrap();
        }
    }
    let templates = Templates::load(Some(directory.path())).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let rendered = templates.render(&Notification { locale: "fr-CA".to_owned(), ..sample() }).unwrap();
    assert!(rendered.text.starts_with("Personne inscrite\u{a0}: Léa O'Brien-Tremblay\n"), "{}", rendered.text);
    assert!(rendered.text.contains("Montant\u{a0}: 49,99\u{a0}$\n"), "{}", rendered.text);
}

/// What a person wrote cannot pass for a line of ours.
#[test]
fn prose_is_quoted_in_the_plain_part() {
    let templates = super::built_in();
    let mut notification = sample();
    notification.template = Template::RequestDeclined;
    notification.facts.note =
        Some("Non.\nDernier jour d’accès : 31 décembre 2026\n\n  x".to_owned() + &"y".repeat(100));
    let rendered = templates.render(&notification).unwrap();
    assert!(
        rendered.text.contains("\n> Non.\n> Dernier jour d’accès : 31 décembre 2026\n>\n> xyyy"),
        "{}",
        rendered.text
    );
    assert!(rendered.text.lines().filter(|line| line.contains("yyy")).all(|line| line.starts_with("> ")));
    assert!(!rendered.html.contains("&gt; Non."));
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
fn a_file_of_a_language_replaces_the_built_in_ones_of_its_regions() {
    let directory = tempfile::tempdir().unwrap();
    let write = |folder: &str, subject: &str| {
        fs::create_dir_all(directory.path().join(folder)).unwrap();
        let file = directory.path().join(folder).join("payment-failed.account_manager.md");
        fs::write(file, format!("Subject: {subject}\n\nHola\n")).unwrap();
        Templates::load(Some(directory.path())).unwrap_or_else(|problems| panic!("{problems:#?}"))
    };
    let subject = |templates: &Templates, locale: &str| {
        templates.render(&Notification { locale: locale.to_owned(), ..sample() }).unwrap().subject
    };
    let templates = write("es", "A");
    assert_eq!(["es", "es-MX", "es-ES"].map(|locale| subject(&templates, locale)), ["A", "A", "A"]);
    let templates = write("es-MX", "B");
    assert_eq!(["es", "es-MX", "es-ES"].map(|locale| subject(&templates, locale)), ["A", "B", "A"]);
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

#[test]
fn files_that_are_not_translated_yet_are_warnings() {
    let directory = tempfile::tempdir().unwrap();
    copy(&templates_directory().join("en"), &directory.path().join("de"));
    let greeting = directory.path().join("de/_greeting.md");
    fs::write(greeting, "Guten Tag{{#if manager.name}} {{manager.name}}{{/if}},\n").unwrap();
    let templates = Templates::load(Some(directory.path())).unwrap();
    let warnings: Vec<String> = templates.warnings().iter().map(ToString::to_string).collect();
    assert!(
        warnings.iter().any(|it| it.ends_with(
            "de/request-declined.account_manager.md: still the English text: translate it into de, or remove the file"
        )),
        "{warnings:#?}"
    );
    assert!(!warnings.iter().any(|it| it.contains("_greeting.md")), "{warnings:#?}");
    let built_in = super::built_in();
    assert!(built_in.warnings().is_empty());
}

/// A file with a mistake costs its email, and no other.
#[test]
fn incomplete_languages_are_loaded_as_far_as_they_go() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("de")).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join("de").join(name), text).unwrap();
    write("payment-failed.account_manager.md", "Subject: Zahlung von {{amount}}\n\nHallo\n");
    write("request-declined.account_manager.md", "Subject: x\n\n{{#if note}}\n");
    write("_footer.account_manager.md", "Fragen?\n");
    let (templates, problems) = Templates::load_valid(Some(directory.path()));
    let render = |locale: &str| templates.render(&Notification { locale: locale.to_owned(), ..sample() });
    assert_eq!(render("de").unwrap().subject, "Zahlung von 49,99\u{a0}CA$");
    assert!(render("fr").is_ok());
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    let all = EmailKind::all().count();
    assert!(
        problems.iter().any(|it| it.starts_with(&format!("de: {} of {all} emails are missing", all - 2))),
        "{problems:#?}"
    );
    assert!(problems.iter().any(|it| it.contains("request-declined.account_manager.md:3:")), "{problems:#?}");
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

//! The control: a page with known defects, all of which the audit must find.

use offramp_testkit::web_process::WebProcess;

use super::visitor::{Setting, Visitor};

/// Spoils a page of the console.
const SPOIL: &str = "(() => {
    const main = document.querySelector('main');
    main.insertAdjacentHTML('beforeend', '<img src=/nothing><p style=\"color: #eee\">pale</p>');
    main.insertAdjacentHTML('beforeend', `<table>${'<tr><td>row</td></tr>'.repeat(102)}</table>`);
    const wide = document.createElement('div');
    Object.assign(wide.style, { width: '1000px', height: '9px' });
    main.append(wide);
    const script = document.createElement('script');
    script.textContent = 'alert(1)';
    main.append(script);
    alert(2);
    console.error('a complaint');
    Promise.reject(new Error('a promise'));
})()";

/// Parts of required findings.
const WRONG: [&str; 8] = [
    "image-alt",
    "102 rows",
    "the page scrolls sideways",
    "the policy forbids style-src",
    "the policy forbids script-src",
    "a script of a document ran",
    "a complaint",
    "a promise",
];

/// Fails unless the audit finds everything that is wrong with the page.
pub async fn prove(setting: &Setting<'_>, console: &WebProcess) {
    let mut visitor = Visitor::new(setting, console).await;
    visitor.is_quiet = true;
    visitor.open("/requests").await;
    visitor.page.evaluate(SPOIL).await;
    visitor.look("control").await;
    for wrong in WRONG {
        assert!(
            visitor.findings.iter().any(|found| found.contains(wrong)),
            "not found: {wrong}\n{:#?}",
            visitor.findings
        );
    }
    visitor.page.close().await;
}

//! Contact sheets: the screenshots of all variants of an email in one language on one sheet, and an index page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Audited;
use crate::devtools::{Browser, Scheme};
use crate::look::{DESKTOP, PHONE, SHOTS};

const STYLE: &str = "<style>
    body { margin: 0; padding: 8px; font: 14px/1.4 sans-serif; background: #b9c3cf; width: max-content; }
    .row { display: flex; gap: 8px; align-items: flex-start; margin-bottom: 8px; }
    figure { margin: 0; }
    figcaption { padding: 2px 0; }
    img { display: block; }
    h1 { font-size: 18px; margin: 0 0 8px; }
</style>";

/// The sheets of an email: their width of screenshots, and whether dark ones are placed below light ones.
const SHEETS: [(&str, u32, bool); 2] = [("phone", PHONE.0, false), ("desktop", DESKTOP.0, true)];

/// Makes the sheets of each email in each language.
pub async fn make(browser: &Browser, audited: &[Audited], out: &Path) {
    let mut groups: BTreeMap<String, Vec<&Audited>> = BTreeMap::new();
    for entry in audited {
        let (group, _) = entry.mail.name.rsplit_once('/').unwrap();
        groups.entry(group.to_owned()).or_default().push(entry);
    }
    let page = browser.page().await;
    page.emulate(Scheme::Light, "screen").await;
    let mut index = format!("<!doctype html><meta charset=utf-8><title>Emails</title>{STYLE}");
    for (group, entries) in groups {
        write!(index, "<h1>{group}</h1><p>").unwrap();
        for (sheet, width, in_rows) in SHEETS {
            let html = sheet_of(&group, &entries, width, in_rows, out);
            let name = format!("{}.{sheet}", group.replace('/', "."));
            let file = out.join(format!("{name}.html"));
            fs::write(&file, html).unwrap();
            page.resize(100, 100, 1, false).await;
            page.open(&format!("file://{}", file.display())).await;
            let size = page.evaluate("[document.body.offsetWidth, document.body.offsetHeight].map(Math.ceil)").await;
            let pixels = |index: usize| u32::try_from(size[index].as_u64().unwrap()).unwrap();
            page.resize(pixels(0), pixels(1), 1, false).await;
            fs::write(out.join(format!("{name}.png")), page.screenshot().await).unwrap();
            write!(index, "<a href='{name}.html'>{sheet}</a> ").unwrap();
        }
    }
    fs::write(out.join("index.html"), index).unwrap();
    page.close().await;
}

/// The screenshots of one width: light and dark in separate rows, or all in one row.
fn sheet_of(group: &str, entries: &[&Audited], sheet_width: u32, in_rows: bool, out: &Path) -> String {
    let mut html = format!("<!doctype html><meta charset=utf-8><title>{group}</title>{STYLE}<h1>{group}</h1>");
    let rows: &[&[Scheme]] = if in_rows { &[&[Scheme::Light], &[Scheme::Dark]] } else { &[&Scheme::ALL] };
    for row in rows {
        html.push_str("<div class=row>");
        for Audited { mail, looked, .. } in entries {
            let (_, variant) = mail.name.rsplit_once('/').unwrap();
            for ((_, (width, _), scheme), file) in SHOTS.iter().zip(&looked.shots) {
                if *width == sheet_width && row.contains(scheme) {
                    let source = file.strip_prefix(out).unwrap().display();
                    write!(
                        html,
                        "<figure><figcaption>{variant}</figcaption><img width={width} src='{source}' alt=''></figure>"
                    )
                    .unwrap();
                }
            }
        }
        html.push_str("</div>");
    }
    html
}

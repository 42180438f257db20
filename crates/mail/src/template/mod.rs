//! Templates of emails: loaded and checked once, at start, then rendered for each email.
//!
//! Each language has a folder with one file per kind of email, `payment-failed.account_manager.md`, and partials, whose
//! names begin with `_`. Both parts of an email come from this one file, so they say the same. Beside the folders is the
//! design, for all languages: MJML, compiled to HTML once. The files in `templates/` are compiled in. A directory given at
//! start replaces them one by one and may add languages. A folder with a region (`fr-CA`) contains only the files that
//! differ from its language's.
//!
//! Loading: `source` reads files; `compile` parses each of them, with `tags` and `parse`; `assemble` builds the templates of
//! one email, with `plain`, `html` and `lint`; `load` does all of this and renders every sample. Rendering: `catalog` finds
//! the reader's language, `facts_view` formats the facts, and Handlebars inserts them, with `helpers`.
//!
//! Facts are data and are never parsed as a template.

mod assemble;
mod block;
mod catalog;
mod color;
mod compile;
mod design;
mod escape;
mod facts_view;
mod full_stop;
mod helpers;
mod html;
mod link;
mod lint;
mod load;
mod parse;
mod plain;
mod problem;
mod source;
mod tags;

pub use catalog::{RenderError, RenderedEmail, Templates};
pub use color::{brand_color, default_brand_color};
pub use problem::TemplateProblem;

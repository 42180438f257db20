//! What people read, and how it reaches them.
//!
//! A notification becomes an email in three steps. [`template`] renders the text in the reader's language, with dates and
//! money in the format of the [`locale`]. [`message`] makes an email of it, and [`dkim`] signs it. [`transport`] sends it:
//! over [`smtp`], or into a file. Only the last step does I/O.
//!
//! Nothing here decides who gets which email with which facts: see
//! [`notification`](offramp_domain::notification). Nothing here names a setting or a subcommand of the program; errors
//! report facts.

mod address;
pub mod dkim;
mod file;
mod headers;
mod kind;
pub mod locale;
mod mail_url;
pub mod message;
mod mime;
pub mod samples;
mod send_error;
pub mod smtp;
pub mod template;
mod text;
pub mod transport;

pub use address::{AddressError, Sender, check_recipient};
pub use dkim::{DkimKey, DkimSigner};
pub use kind::EmailKind;
pub use mail_url::{LoginProblem, MailConfigError, MailUrl};
pub use message::{ComposedEmail, Origin, compose};
pub use send_error::{Cause, SendError, SenderProblem};
pub use smtp::{Deadlines, SmtpName};
pub use template::{RenderError, RenderedEmail, TemplateProblem, Templates, brand_color, default_brand_color};
pub use transport::{MailConnection, Transport};

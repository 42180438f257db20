//! Whom a rejection concerns: this email, this program, or the server's state.

use super::reply::{EnhancedCode, Reply};
use super::step::Step;
use crate::send_error::SenderProblem;

/// Whom a rejection concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// This recipient or this content. Retrying does not help.
    Email,
    /// The server, which cannot accept this email now.
    Server,
    /// The server, which accepts no emails now, or fewer.
    Rate,
    /// This program: its name, rights, reputation or quota. Other emails are affected, too.
    Sender,
}

impl Reply {
    /// Whom this rejection concerns, by its enhanced code (RFC 3463), else by its code and the step.
    pub(super) fn blame(&self, step: Step) -> Blame {
        let parts = self.enhanced().map(|EnhancedCode { subject, detail, .. }| (subject, detail));
        if self.code < 500 {
            let is_rate = self.code == 421 || step == Step::Mail || matches!(parts, Some((3 | 5 | 7, _) | (4, 5)));
            return if is_rate { Blame::Rate } else { Blame::Server };
        }
        match (step, parts) {
            (Step::Mail, Some((6, _))) => Blame::Email,
            // 5.1.7, 5.1.8: a bad sender address, which servers often report only after RCPT. 5.1.90: Exchange's daily limit.
            // A rejection before the recipient is named holds for every email.
            (_, Some((1, 7 | 8 | 90))) | (Step::Mail, _) => Blame::Sender,
            (step, _) if step.is_of_connection() => Blame::Sender,
            (_, Some((1 | 2 | 6, _))) => Blame::Email,
            (_, Some((3 | 4 | 5 | 7, _))) => Blame::Sender,
            _ if matches!(self.code, 503 | 504 | 530) => Blame::Sender,
            _ => Blame::Email,
        }
    }

    /// What the server objects to, when the rejection concerns this program ([`Blame::Sender`]).
    pub(super) fn sender_problem(&self, step: Step) -> SenderProblem {
        let text = self.text().to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let parts = self.enhanced().map(|EnhancedCode { subject, detail, .. }| (subject, detail));
        if step == Step::Ehlo || has(&["helo", "ehlo"]) {
            SenderProblem::EhloName
        } else if has(&["starttls"]) {
            SenderProblem::EncryptionRequired
        } else if step == Step::Auth || self.code == 530 || matches!(parts, Some((7, 8 | 9 | 57 | 139))) {
            SenderProblem::Login
        } else if parts == Some((3, 4)) {
            SenderProblem::SizeLimit
        } else if step == Step::Mail || matches!(parts, Some((1, 7 | 8) | (7, 60))) || has(&["sender address"]) {
            SenderProblem::SenderAddress
        } else if matches!(parts, Some((4, 5) | (1, 90))) || has(&["limit exceeded", "quota"]) {
            SenderProblem::Quota
        } else if has(&["relay"]) {
            SenderProblem::Relay
        } else {
            SenderProblem::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies of real servers.
    #[test]
    fn real_replies_are_attributed() {
        use Blame::{Email, Rate, Sender, Server};
        let table = [
            // Postfix
            (
                Step::Rcpt,
                "550 5.1.1 <a@b.example>: Recipient address rejected: User unknown in local recipient table",
                Email,
            ),
            (Step::Rcpt, "450 4.1.1 <a@b.example>: Recipient address rejected: unverified address", Server),
            (Step::Rcpt, "450 4.2.0 <a@b.example>: Recipient address rejected: Greylisted", Server),
            (Step::Rcpt, "451 4.3.0 <a@b.example>: Temporary lookup failure", Rate),
            (Step::Rcpt, "452 4.3.1 Insufficient system storage", Rate),
            (Step::Rcpt, "504 5.5.2 <vm>: Helo command rejected: need fully-qualified hostname", Sender),
            (Step::Rcpt, "450 4.7.1 <vm>: Helo command rejected: Host not found", Rate),
            (Step::Rcpt, "554 5.7.1 <a@b.example>: Relay access denied", Sender),
            (Step::Rcpt, "550 5.1.8 <c@d.example>: Sender address rejected: Domain not found", Sender),
            (Step::Rcpt, "553 5.7.1 <c@d.example>: Sender address rejected: not owned by user e", Sender),
            (
                Step::Rcpt,
                "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
                Sender,
            ),
            (Step::Rcpt, "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]", Rate),
            (Step::Mail, "530 5.7.0 Must issue a STARTTLS command first", Sender),
            (Step::Mail, "552 5.3.4 Message size exceeds fixed limit", Sender),
            (Step::Reply, "550 5.7.1 Spam message rejected", Sender),
            (Step::Reply, "554 5.6.0 Message contains invalid header", Email),
            (Step::Reply, "451 4.7.1 Service unavailable - try again later", Rate),
            (Step::Greeting, "421 4.3.2 All server ports are busy", Rate),
            (Step::Greeting, "554 5.7.1 client host blocked", Sender),
            (Step::Auth, "535 5.7.8 Error: authentication failed", Sender),
            // Exim
            (Step::Rcpt, "550 Unrouteable address", Email),
            (Step::Rcpt, "550 Unknown user", Email),
            (Step::Rcpt, "451 Temporary local problem - please try later", Server),
            (Step::Ehlo, "550 EHLO vm rejected", Sender),
            (Step::Ehlo, "501 Syntactically invalid EHLO argument(s)", Sender),
            (Step::Reply, "550 Administrative prohibition", Email),
            (Step::Greeting, "554 No SMTP service here", Sender),
            // Amazon SES
            (Step::Reply, "454 4.7.0 Throttling failure: Maximum sending rate exceeded.", Rate),
            (Step::Reply, "454 4.7.0 Throttling failure: Daily message quota exceeded.", Rate),
            (Step::Reply, "554 Message rejected: Email address is not verified.", Email),
            (Step::Auth, "535 Authentication Credentials Invalid", Sender),
            (Step::Mail, "530 Must issue a STARTTLS command first", Sender),
            // Gmail
            (Step::Rcpt, "550-5.1.1 The email account that you tried to reach does not exist.\n550 5.1.1 Try", Email),
            (Step::Rcpt, "552-5.2.2 The email account that you tried to reach is over quota.\n552 5.2.2 x", Email),
            (
                Step::Rcpt,
                "450-4.2.1 The user you are trying to contact is receiving email at a rate that\n450 4.2.1 x",
                Server,
            ),
            (Step::Mail, "550-5.4.5 Daily user sending limit exceeded.\n550 5.4.5 gsmtp", Sender),
            (Step::Reply, "550-5.7.26 This message does not pass authentication checks\n550 5.7.26 gsmtp", Sender),
            (Step::Reply, "421-4.7.0 Our system has detected an unusual rate of unsolicited mail\n421 4.7.0 x", Rate),
            (Step::Auth, "534-5.7.9 Application-specific password required.\n534 5.7.9 gsmtp", Sender),
            // Exchange
            (
                Step::Rcpt,
                "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
                Email,
            ),
            (Step::Rcpt, "550 5.4.1 Recipient address rejected: Access denied", Sender),
            (Step::Reply, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", Sender),
            (Step::Mail, "550 5.7.64 TenantAttribution; Relay Access Denied", Sender),
            (Step::Reply, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", Rate),
            (Step::Reply, "550 5.1.90 Your message can't be sent because you've reached your daily limit", Sender),
            (Step::Rcpt, "452 4.5.3 Too many recipients", Rate),
            (Step::Rcpt, "452 4.2.2 Mailbox full", Server),
            // Out of sequence
            (Step::Rcpt, "503 Bad sequence of commands", Sender),
            (Step::Data, "503 5.5.1 RCPT first", Sender),
            (Step::Data, "554 Transaction failed", Email),
            (Step::Rcpt, "421 closing", Rate),
        ];
        for (step, text, expected) in table {
            assert_eq!(Reply::of(text).blame(step), expected, "{step:?} {text}");
        }
    }

    #[test]
    fn sender_problems_are_recognised() {
        for (step, text, problem) in [
            (
                Step::Rcpt,
                "504 5.5.2 <vm>: Helo command rejected: need fully-qualified hostname",
                SenderProblem::EhloName,
            ),
            (Step::Ehlo, "550 vm is not a name", SenderProblem::EhloName),
            (Step::Mail, "530 5.7.0 Must issue a STARTTLS command first", SenderProblem::EncryptionRequired),
            (Step::Auth, "535 5.7.8 Error: authentication failed", SenderProblem::Login),
            (Step::Mail, "530 5.7.57 Client not authenticated to send mail", SenderProblem::Login),
            (
                Step::Reply,
                "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
                SenderProblem::SenderAddress,
            ),
            (
                Step::Rcpt,
                "550 5.1.8 <c@d.example>: Sender address rejected: Domain not found",
                SenderProblem::SenderAddress,
            ),
            (Step::Reply, "550 5.4.5 Daily user sending limit exceeded", SenderProblem::Quota),
            (Step::Reply, "552 5.3.4 Error: message file too big", SenderProblem::SizeLimit),
            (Step::Rcpt, "554 5.7.1 <a@b.example>: Relay access denied", SenderProblem::Relay),
            (Step::Reply, "550 5.7.1 Spam message rejected", SenderProblem::Other),
        ] {
            assert_eq!(Reply::of(text).sender_problem(step), problem, "{text}");
        }
    }
}

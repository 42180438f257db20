//! What a mail server answers: replies of bounded size, their codes, and whose fault a rejection is (contract §5).

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// The longest line of a reply, in bytes. RFC 5321 §4.5.3.1.5 allows 512; some servers explain themselves at more length.
const LINE_BYTES_MAX: u64 = 2_048;
/// The most lines of a reply. A server gone mad must not cost memory.
const LINES_MAX: usize = 100;

/// A step of the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Connecting,
    /// The TLS handshake.
    Tls,
    /// What a server says first after the handshake. One that wants another certificate says so only now, or hangs up.
    FirstWordsOverTls,
    Greeting,
    Ehlo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// The content is being sent, and the server cannot have all of it.
    Content,
    /// The whole content was sent.
    Reply,
}

impl Step {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Tls => "TLS",
            Self::FirstWordsOverTls => "first words over TLS",
            Self::Greeting => "greeting",
            Self::Ehlo => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::Content => "content",
            Self::Reply => "reply to the content",
        }
    }

    /// Whether it concerns the connection, and so every email.
    pub(super) fn is_of_connection(self) -> bool {
        !matches!(self, Self::Mail | Self::Rcpt | Self::Data | Self::Content | Self::Reply)
    }
}

/// A reply that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// The text of its lines, without the code.
    pub(super) lines: Vec<String>,
}

impl Reply {
    /// Reads one reply. After an error the connection cannot be used: it is unknown what the server says next.
    ///
    /// # Errors
    /// When the connection ends or fails, or what comes is not a reply.
    pub(super) async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Self> {
        let unreadable = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut lines = Vec::new();
        let mut code = None;
        loop {
            let mut bytes = Vec::new();
            (&mut *stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await?;
            if bytes.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            if !bytes.ends_with(b"\n") {
                return Err(if bytes.len() as u64 == LINE_BYTES_MAX {
                    unreadable("the reply has a line that is far too long")
                } else {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection within a reply")
                });
            }
            if lines.len() == LINES_MAX {
                return Err(unreadable("the reply has far too many lines"));
            }
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end();
            let digits = line.get(..3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let this = digits.and_then(|digits| digits.parse::<u16>().ok()).filter(|code| (200..600).contains(code));
            let this = this.ok_or_else(|| unreadable("what the server says is not a reply"))?;
            if *code.get_or_insert(this) != this {
                return Err(unreadable("the lines of the reply have different codes"));
            }
            let is_last = match line.as_bytes().get(3) {
                None | Some(b' ') => true,
                Some(b'-') => false,
                Some(_) => return Err(unreadable("what the server says is not a reply")),
            };
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if is_last {
                return Ok(Self { code: this, lines });
            }
        }
    }

    /// The words, in one line.
    pub(super) fn text(&self) -> String {
        self.lines.join(" ")
    }

    /// `550 5.1.1`: what of a reply may be logged. The words may hold an address.
    pub(super) fn codes(&self) -> String {
        match self.enhanced() {
            Some(Enhanced { class, subject, detail }) => format!("{} {class}.{subject}.{detail}", self.code),
            None => self.code.to_string(),
        }
    }

    /// The enhanced status code (RFC 2034, RFC 3463).
    fn enhanced(&self) -> Option<Enhanced> {
        let word = self.lines.first()?.split([' ', ':']).next()?;
        let mut numbers = word.split('.').map(|number| {
            let is_short = (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
            if is_short { number.parse::<u16>().ok() } else { None }
        });
        let (class, subject, detail) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let is_whole = numbers.next().is_none() && matches!(class, 2 | 4 | 5);
        is_whole.then_some(Enhanced { class, subject, detail })
    }

    /// Whose fault this rejection is.
    pub(super) fn blame(&self, step: Step) -> Blame {
        let parts = self.enhanced().map(|Enhanced { subject, detail, .. }| (subject, detail));
        if self.code < 500 {
            let is_rate = self.code == 421 || step == Step::Mail || matches!(parts, Some((3 | 5 | 7, _) | (4, 5)));
            return if is_rate { Blame::Rate } else { Blame::Server };
        }
        match (step, parts) {
            (Step::Mail, Some((6, _))) => Blame::Email,
            // "Bad sender's address", which servers often say only after RCPT, and Exchange's "daily limit". And whatever is said
            // before a recipient is named is true of every email.
            (_, Some((1, 7 | 8 | 90))) | (Step::Mail, _) => Blame::Sender,
            (step, _) if step.is_of_connection() => Blame::Sender,
            (_, Some((1 | 2 | 6, _))) => Blame::Email,
            (_, Some((3 | 4 | 5 | 7, _))) => Blame::Sender,
            _ if matches!(self.code, 503 | 504 | 530) => Blame::Sender,
            _ => Blame::Email,
        }
    }

    /// What the server objects to when it rejects this program ([`Blame::Sender`]).
    pub(super) fn sender_problem(&self, step: Step) -> SenderProblem {
        let text = self.text().to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let parts = self.enhanced().map(|Enhanced { subject, detail, .. }| (subject, detail));
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

/// What a server objects to when it rejects this program, and with it every email.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SenderProblem {
    /// The name in EHLO.
    EhloName,
    /// The connection must be encrypted first.
    EncryptionRequired,
    /// The user, the password or the token; or there is no login where one is required.
    Login,
    /// The email is larger than the server's limit.
    SizeLimit,
    /// The sender's address, which this user may not use or whose domain does not exist.
    SenderAddress,
    /// A quota is exhausted.
    Quota,
    /// The server does not relay for this host or user.
    Relay,
    /// Anything else: reputation, policy.
    Other,
}

#[derive(Clone, Copy)]
struct Enhanced {
    class: u16,
    subject: u16,
    detail: u16,
}

/// Whose fault a rejection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// This recipient's or this content's: no later try can help.
    Email,
    /// The server's state, as far as this email is concerned.
    Server,
    /// Our rate, or the server's state as a whole.
    Rate,
    /// Ours: name, rights, reputation, quota. It concerns other emails as well.
    Sender,
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> io::Result<Reply> {
        Reply::read(&mut &*bytes).await
    }

    fn reply(text: &str) -> Reply {
        let code = text[..3].parse().unwrap();
        Reply { code, lines: text.lines().map(|line| line[4..].to_owned()).collect() }
    }

    #[tokio::test]
    async fn replies_are_read_whole_or_not_at_all() {
        let reply = read(b"250-mail.example\r\n250-PIPELINING\n250 8BITMIME\r\n").await.unwrap();
        assert_eq!(
            reply,
            Reply { code: 250, lines: ["mail.example", "PIPELINING", "8BITMIME"].map(Into::into).into() }
        );
        assert_eq!(read(b"354\r\n").await.unwrap(), Reply { code: 354, lines: vec![String::new()] });
        assert_eq!(read(b"550 5.1.1 \xff\r\n").await.unwrap().text(), "5.1.1 \u{fffd}");
        for (bytes, kind) in [
            (&b""[..], io::ErrorKind::UnexpectedEof),
            (b"250 o", io::ErrorKind::UnexpectedEof),
            (b"250-ok\r\n", io::ErrorKind::UnexpectedEof),
            (b"gibberish\r\n", io::ErrorKind::InvalidData),
            (b"2500 ok\r\n", io::ErrorKind::InvalidData),
            (b"150 ok\r\n", io::ErrorKind::InvalidData),
            (b"250-ok\r\n550 no\r\n", io::ErrorKind::InvalidData),
            (b"\r\n", io::ErrorKind::InvalidData),
        ] {
            assert_eq!(read(bytes).await.unwrap_err().kind(), kind, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn replies_without_end_are_given_up() {
        assert_eq!(read(&vec![b'2'; 1 << 20]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&b"250-x\r\n".repeat(10_000)).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn enhanced_codes_are_told_from_words() {
        #[track_caller]
        fn check(text: &str, codes: &str) {
            assert_eq!(reply(text).codes(), codes);
        }
        check("550 5.1.1 <a@b.example>: Recipient address rejected", "550 5.1.1");
        check("550-5.1.1 The email account that you tried\n550 5.1.1 to reach", "550 5.1.1");
        check("550 5.7.60 SMTP; Client does not have permissions", "550 5.7.60");
        check("550 10.0.0.1 is blocked", "550");
        check("550 5.1.1.1 odd", "550");
        check("550 3.1.1 odd", "550");
        check("550 No such user", "550");
        check("550 ", "550");
    }

    /// Replies of servers in use, and what becomes of the email.
    #[test]
    fn real_replies_are_blamed_on_whom_they_concern() {
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
            // In the wrong order
            (Step::Rcpt, "503 Bad sequence of commands", Sender),
            (Step::Data, "503 5.5.1 RCPT first", Sender),
            (Step::Data, "554 Transaction failed", Email),
            (Step::Rcpt, "421 closing", Rate),
        ];
        for (step, text, expected) in table {
            assert_eq!(reply(text).blame(step), expected, "{step:?} {text}");
        }
    }

    #[test]
    fn replies_say_what_the_server_objects_to() {
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
            assert_eq!(reply(text).sender_problem(step), problem, "{text}");
        }
    }
}

//! A server's reply: bounded in size, with its codes.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// The longest line of a reply, in bytes. RFC 5321 §4.5.3.1.5 allows 512; some servers write longer explanations.
const LINE_BYTES_MAX: u64 = 2_048;
/// The most lines of a reply. A broken server must not exhaust memory.
const LINES_MAX: usize = 100;

/// A well-formed reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// The text of its lines, without the code.
    pub(super) lines: Vec<String>,
}

impl Reply {
    /// Reads one reply. After an error the connection is out of sync and must not be used.
    ///
    /// # Errors
    /// When the connection ends or fails, or the input is not a reply.
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
                    unreadable("a line of the reply is too long")
                } else {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection within a reply")
                });
            }
            if lines.len() == LINES_MAX {
                return Err(unreadable("the reply has too many lines"));
            }
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end();
            let digits = line.get(..3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let this = digits.and_then(|digits| digits.parse::<u16>().ok()).filter(|code| (200..600).contains(code));
            let this = this.ok_or_else(|| unreadable("not an SMTP reply"))?;
            if *code.get_or_insert(this) != this {
                return Err(unreadable("the lines of the reply have different codes"));
            }
            let is_last = match line.as_bytes().get(3) {
                None | Some(b' ') => true,
                Some(b'-') => false,
                Some(_) => return Err(unreadable("not an SMTP reply")),
            };
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            if is_last {
                return Ok(Self { code: this, lines });
            }
        }
    }

    /// The text, in one line.
    pub(super) fn text(&self) -> String {
        self.lines.join(" ")
    }

    /// `550 5.1.1`: the part that may be logged. The text may contain an address.
    pub(super) fn codes(&self) -> String {
        match self.enhanced() {
            Some(EnhancedCode { class, subject, detail }) => format!("{} {class}.{subject}.{detail}", self.code),
            None => self.code.to_string(),
        }
    }

    /// The enhanced status code (RFC 2034, RFC 3463).
    pub(super) fn enhanced(&self) -> Option<EnhancedCode> {
        let word = self.lines.first()?.split([' ', ':']).next()?;
        let mut numbers = word.split('.').map(|number| {
            let is_short = (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
            if is_short { number.parse::<u16>().ok() } else { None }
        });
        let (class, subject, detail) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let is_whole = numbers.next().is_none() && matches!(class, 2 | 4 | 5);
        is_whole.then_some(EnhancedCode { class, subject, detail })
    }
}

/// `5.1.1` (RFC 3463).
#[derive(Clone, Copy)]
pub(super) struct EnhancedCode {
    pub(super) class: u16,
    pub(super) subject: u16,
    pub(super) detail: u16,
}

#[cfg(test)]
impl Reply {
    /// Parses `550 5.1.1 no such user`.
    pub(super) fn of(text: &str) -> Self {
        let code = text[..3].parse().unwrap();
        Self { code, lines: text.lines().map(|line| line[4..].to_owned()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> io::Result<Reply> {
        Reply::read(&mut &*bytes).await
    }

    #[tokio::test]
    async fn incomplete_and_malformed_replies_are_errors() {
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
    async fn endless_replies_are_errors() {
        assert_eq!(read(&vec![b'2'; 1 << 20]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&b"250-x\r\n".repeat(10_000)).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn only_well_formed_enhanced_codes_are_read() {
        #[track_caller]
        fn check(text: &str, codes: &str) {
            assert_eq!(Reply::of(text).codes(), codes);
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
}

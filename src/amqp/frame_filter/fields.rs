//! Sanitises, in place, the fields of method and content header frames that a publisher controls.

/// The protocol version in `connection.start`.
pub(super) const PROTOCOL_VERSION_BYTES: usize = 2;

/// The deepest nesting of header fields: more than any real message has, far less than overflows a stack.
pub(super) const DEPTH_MAX: usize = 64;

/// The unread rest of a frame, changed in place while it is read. `None` stands for malformed bytes.
pub(super) struct Fields<'a>(pub(super) &'a mut [u8]);

impl<'a> Fields<'a> {
    /// A method frame: the broker's first frame, or a method of class 60 ("basic") that carries a publisher's text.
    pub(super) fn method(mut self) -> Option<()> {
        match *self.take(4)? {
            [0, 10, 0, 10] => {
                self.take(PROTOCOL_VERSION_BYTES)?;
                return Fields(self.long_bytes()?).table(1);
            }
            [0, 60, 0, 50] => {
                self.take(2)?; // reply code
                self.short_string()?; // reply text
            }
            [0, 60, 0, 60] => {
                self.short_string()?; // consumer tag
                self.take(8 + 1)?; // delivery tag, redelivered
            }
            [0, 60, 0, 71] => self.take(8 + 1).map(drop)?,
            _ => return Some(()),
        }
        self.short_string()?; // exchange
        self.short_string() // routing key
    }

    /// A content header: class, weight and body size, then one bit for each property that follows.
    pub(super) fn content_header(mut self) -> Option<()> {
        self.take(2 + 2 + 8)?;
        let present = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        let properties: [fn(&mut Self) -> Option<()>; 14] = [
            Self::short_string, // content type
            Self::short_string, // content encoding
            |fields| Fields(fields.long_bytes()?).table(1),
            |fields| fields.take(1).map(drop), // delivery mode
            |fields| fields.take(1).map(drop), // priority
            Self::short_string,                // correlation id
            Self::short_string,                // reply to
            Self::short_string,                // expiration
            Self::short_string,                // message id
            |fields| fields.take(8).map(drop), // timestamp
            Self::short_string,                // type
            Self::short_string,                // user id
            Self::short_string,                // app id
            Self::short_string,                // cluster id
        ];
        for (index, property) in properties.iter().enumerate() {
            if present & (0x8000 >> index) != 0 {
                property(&mut self)?;
            }
        }
        Some(())
    }

    fn table(mut self, depth: usize) -> Option<()> {
        while !self.0.is_empty() {
            self.short_string()?;
            self.value(depth)?;
        }
        Some(())
    }

    fn array(mut self, depth: usize) -> Option<()> {
        while !self.0.is_empty() {
            self.value(depth)?;
        }
        Some(())
    }

    /// A value in a table or array at nesting level `depth`.
    fn value(&mut self, depth: usize) -> Option<()> {
        let kind = self.take(1)?;
        match kind[0] {
            b'A' | b'F' if depth >= DEPTH_MAX => {
                kind[0] = b'x';
                self.long_bytes().map(drop)
            }
            b'A' => Fields(self.long_bytes()?).array(depth + 1),
            b'F' => Fields(self.long_bytes()?).table(depth + 1),
            b'S' | b'x' => self.long_bytes().map(drop),
            b't' | b'b' | b'B' => self.take(1).map(drop),
            b's' | b'U' | b'u' => self.take(2).map(drop),
            b'I' | b'i' | b'f' => self.take(4).map(drop),
            b'D' => self.take(5).map(drop),
            b'L' | b'l' | b'd' | b'T' => self.take(8).map(drop),
            b'V' => Some(()),
            _ => None,
        }
    }

    fn short_string(&mut self) -> Option<()> {
        let length = usize::from(self.take(1)?[0]);
        let text = self.take(length)?;
        if std::str::from_utf8(text).is_err() {
            text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        Some(())
    }

    fn long_bytes(&mut self) -> Option<&'a mut [u8]> {
        let length = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        self.take(usize::try_from(length).ok()?)
    }

    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

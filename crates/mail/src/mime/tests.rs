//! The output, parsed by another library.

use mail_parser::{MessageParser, MimeHeaders, PartType};
use proptest::prelude::*;

use super::*;

#[track_caller]
fn check_quoted(line: &str, expected: &str) {
    let mut quoted = Vec::new();
    quote(line.as_bytes(), &mut quoted);
    assert_eq!(String::from_utf8(quoted).unwrap(), expected, "{line:?}");
}

#[test]
fn quoted_printable() {
    check_quoted("", "");
    check_quoted("Hello = \"world\"", "Hello =3D \"world\"");
    check_quoted("49,99\u{a0}$ à Québec", "49,99=C2=A0$ =C3=A0 Qu=C3=A9bec");
    check_quoted("a\tb", "a\tb");
    check_quoted("a\u{0}\r\u{7f}b", "a=00=0D=7Fb");
    // No white space at the end of a line: some servers remove it.
    check_quoted("a  ", "a =20");
    check_quoted("\t", "=09");
    // Nothing at the beginning of a line that is special in SMTP or mbox files.
    check_quoted("..", "=2E.");
    check_quoted("From here", "=46rom here");
    check_quoted("Fromage", "Fromage");
}

#[test]
fn long_lines_are_broken_softly() {
    let a = |count| "a".repeat(count);
    check_quoted(&a(75), &a(75));
    check_quoted(&a(76), &format!("{}=\r\na", a(75)));
    check_quoted(&a(160), &format!("{}=\r\n{}=\r\n{}", a(75), a(75), a(10)));
    check_quoted(&format!("{}é", a(70)), &format!("{}=C3=\r\n=A9", a(70)));
    check_quoted(&format!("{}é", a(69)), &format!("{}=C3=A9", a(69)));
    // What a soft line break puts at the beginning of a line is as dangerous there.
    check_quoted(&format!("{}.b", a(75)), &format!("{}=\r\n=2Eb", a(75)));
    check_quoted(&format!("{}From b", a(75)), &format!("{}=\r\n=46rom b", a(75)));
    check_quoted(&format!("{} ", a(75)), &format!("{}=\r\n=20", a(75)));
    check_quoted(&format!("{} b", a(74)), &format!("{} =\r\nb", a(74)));
}

fn write(text: &str, html: &str, encoding: Encoding) -> String {
    let body = Alternative::new(text, html, Uuid::from_u128(42));
    let mut out = Vec::new();
    body.write_headers(encoding, &mut out);
    out.extend_from_slice(b"\r\n");
    body.write(encoding, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn bodies_have_both_parts_and_their_headers() {
    let expected = "\
MIME-Version: 1.0
Content-Type: multipart/alternative;
 boundary=\"=_0000000000000000000000000000002a\"
Content-Transfer-Encoding: 8bit

--=_0000000000000000000000000000002a
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 7bit

Hello

--=_0000000000000000000000000000002a
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: 8bit

<p>Héllo</p>

--=_0000000000000000000000000000002a--
";
    assert_eq!(write("Hello\n", "<p>Héllo</p>", Encoding::EightBit), expected.replace('\n', "\r\n"));
    let quoted = expected
        .replace("Content-Transfer-Encoding: 8bit\n\n--", "\n--")
        .replace("7bit", "quoted-printable")
        .replace("8bit", "quoted-printable")
        .replace('é', "=C3=A9");
    assert_eq!(write("Hello\n", "<p>Héllo</p>", Encoding::Ascii), quoted.replace('\n', "\r\n"));
}

#[test]
fn long_lines_bare_line_ends_and_boundaries_need_encoding() {
    #[track_caller]
    fn check(text: &str, fits: bool) {
        assert_eq!(Alternative::new(text, "<p>", Uuid::nil()).fits_8bit(), fits);
        assert_eq!(Alternative::new("text", text, Uuid::nil()).fits_8bit(), fits);
    }
    check("", true);
    check("Café\r\n.\r\nFrom x\n", true);
    check(&"é".repeat(499), true);
    check(&format!("{}\n{}", "é".repeat(499), "e".repeat(998)), true);
    check(&format!("{}\nx", "e".repeat(998)), true);
    check(&"short\n".repeat(1000), true);
    check(&format!("x\n{}e", "é".repeat(499)), false);
    check(&format!("{}\nx", "e".repeat(999)), false);
    check("a\rb", false);
    check("a\0b", false);
    check("Hello\n--=_00000000000000000000000000000000--\n", false);
    check("--=_0\n", false);
    check("Hello --=_0\n", true);
}

/// Texts with lines and characters that are special in MIME or SMTP.
fn any_text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        "\n",
        "\n.",
        "\n..\n",
        " \n",
        "\t",
        "=",
        "=20",
        "=\n",
        "\nFrom ",
        "é",
        "🏊🏽‍♀️",
        "\u{a0}",
        "\n--=_",
        "\0",
        "\r",
    ]);
    let piece = prop_oneof![special.prop_map(str::to_owned), "[ -~]{0,100}", "\\PC{0,30}"];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_survives_a_round_trip(text in any_text(), html in any_text()) {
        let lines = |part: &str| part.lines().flat_map(|line| [line, "\n"]).collect::<String>();
        let fits_8bit = Alternative::new(&text, &html, Uuid::nil()).fits_8bit();
        for encoding in [Encoding::EightBit, Encoding::Ascii] {
            if encoding == Encoding::EightBit && !fits_8bit {
                continue;
            }
            let written = write(&text, &html, encoding);
            for line in written.split_terminator("\r\n") {
                prop_assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
                if encoding == Encoding::Ascii {
                    prop_assert!(line.len() <= 76 && line.is_ascii() && !line.ends_with([' ', '\t']), "{line:?}");
                    prop_assert!(!line.starts_with('.') && !line.starts_with("From "), "{line:?}");
                } else {
                    prop_assert!(line.len() <= 998, "{line:?}");
                }
            }
            let parsed = MessageParser::default().parse(written.as_bytes()).unwrap();
            let [_, plain, page] = parsed.parts.as_slice() else { panic!("{} parts", parsed.parts.len()) };
            let (PartType::Text(plain_text), PartType::Html(page_text)) = (&plain.body, &page.body) else { panic!("kinds") };
            prop_assert_eq!(plain_text.replace("\r\n", "\n"), lines(&text));
            prop_assert_eq!(page_text.replace("\r\n", "\n"), lines(&html));
            prop_assert_eq!(plain.content_transfer_encoding().is_some(), true);
        }
    }
}

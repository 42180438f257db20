//! Keys in every format, and canonical forms. `tests/it` verifies whole signatures with another library.

use super::*;

const RSA_PKCS1: &str = include_str!("../../../testkit/src/dkim/rsa.pkcs1.pem");
const RSA_PKCS8: &str = include_str!("../../../testkit/src/dkim/rsa.pkcs8.pem");
const ED25519: &str = include_str!("../../../testkit/src/dkim/ed25519.pem");

/// The output of `openssl pkey -pubout -outform DER | base64`: all of it for the RSA key, the end of it for the Ed25519 key.
const RSA_PUBLIC: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAqgBStZPzn1x9Dac8UrA9X5JZSCbxzSmPXxO07kvd5fyJpXHfYA\
    TsEST3IBvCoPLD6dVNfixd9qe60HU3clzW7cm6NhE6pJDPEd+EWEnRS/qPxzqiWK35DXJf1Y/x1yPGnlZLFHvDDwHEb3eljKf3sm2Xu+apPVHGOySfSxoWRT\
    idwhtT1ItJ/8+0bDgNA2OwGKPlyj/82az+3ZizrxGCJsPpWEN1QXTMG/BvGxuGyAvmhm3ujvesPcGO93I6pPd+YwfqQp0LiTv26Gb8brrMTepztrCj9l9bVc\
    3ZnItU132DHTG3zHKCi7HygXmW3GGggRdghMMy1rIWjD9WwH7SAwIDAQAB";
const ED25519_PUBLIC: &str = "VXfLKMz+y0zkqspuFSbUuyNKiRjJIP8IfvTUdyEbTfk=";

fn signer(pem: &str) -> DkimSigner {
    DkimSigner::new(DkimKey::parse(pem).unwrap(), "2026-06".to_owned(), "example.com".to_owned())
}

#[test]
fn every_common_key_format_is_read() {
    let one_line = RSA_PKCS8.replace('\n', "\\n");
    for pem in [RSA_PKCS1, RSA_PKCS8, one_line.as_str()] {
        let signer = signer(pem);
        assert_eq!(signer.dns_name(), "2026-06._domainkey.example.com");
        assert_eq!(signer.dns_record(), format!("v=DKIM1; k=rsa; p={RSA_PUBLIC}"));
    }
    assert_eq!(signer(ED25519).dns_record(), format!("v=DKIM1; k=ed25519; p={ED25519_PUBLIC}"));
    // Newer tools include the public key in the file.
    let generated = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let expected = format!("v=DKIM1; k=ed25519; p={}", BASE64.encode(generated.public_key_raw()));
    assert_eq!(signer(&generated.serialize_pem()).dns_record(), expected);
}

#[test]
fn errors_about_keys_never_contain_the_key() {
    let no_pem = "it is not a private key in PEM form (-----BEGIN PRIVATE KEY-----), or it is damaged";
    let unfit = "it is neither an RSA key of 2048 to 4096 bits nor an Ed25519 key";
    let elliptic = rcgen::KeyPair::generate().unwrap().serialize_pem();
    // `openssl genrsa -traditional 1024`
    let short = "-----BEGIN RSA PRIVATE KEY-----\n\
        MIICXgIBAAKBgQDwncFJb5D5OcwAJPZ7wTefhGgfCm1dyFY2ygNMF/hJUOMswwyT\n\
        JLb8UtgphJoOV87zvfVLloB2RN6t6lB8EcK+lK+jKzs0ygdvW4dqjDXbE3OGKeYc\n\
        wzhcOsrIaQpzKv1eLUU30mYXUZElvySFtKjYJbj9HSqlfg+XQazsKSEhdwIDAQAB\n\
        AoGBAO+mkC8OObyg/jhemEjmRvpQLExOXGN997CWP/Z4IUkUkU+x7UJY3RAvizC+\n\
        65nBh1RpLHleqxAgxBFAQW1xWx376ahiJOmlIn/vzrk+zzigaEZtNzojS3aaXo9o\n\
        LO6uwOYoJR/gJA/snVhR1at4a/Wop75HWu+MpLZLX22tn18RAkEA/57v/bOPwXub\n\
        4WBlm8p9zFtseiRynyJ9ulUqSv8RyYdsb+BH9l8+ikBZ95GooGaNZ6sRiD84nChf\n\
        /rfdOJGiywJBAPD5Hr/SEWlq0qD6F+hMllfeXcPwquRVBTxEqj23dKF54NsSBvxu\n\
        EluRQNArrCobOKzzAxvmWsnOStDilvy+6oUCQQDx7DFEEdIHEv6Hgd0IYc9HPmte\n\
        +enFNDZ7yCh7zAXAjruQ8loJEUE2RQsgpClMjWJc7+lq4jKokAmyH79tz1+bAkEA\n\
        gXmJMQ3g9yBDbeUSpWlJOosrHFWarLaV6o0GX8TLsNt4mpy0DjviNzrzdSaSCcm4\n\
        iQzFdd8ultH11wh4kfLOtQJABPLvl2GSJ6ADuaTsb141TMienlob+ZIkqXctbzHH\n\
        /EVgZmJYUDl81C1/WM3smK1uVzvPnsZ+ANkRvj5Q6+swRw==\n\
        -----END RSA PRIVATE KEY-----\n";
    for (text, why) in [
        ("", no_pem),
        (RSA_PKCS8.lines().nth(1).unwrap(), no_pem),
        (&RSA_PKCS8[..RSA_PKCS8.len() / 2], no_pem),
        (&RSA_PKCS8.replacen("MII", "AAA", 1), unfit),
        (&elliptic, unfit),
        (short, unfit),
        (
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "it is encrypted; decrypt it with `openssl pkey -in FILE`",
        ),
    ] {
        assert_eq!(DkimKey::parse(text).map(|key| key.public).unwrap_err(), why, "{text}");
    }
}

#[test]
fn debug_output_omits_the_key() {
    let shown = format!("{:?} {:?}", DkimKey::parse(RSA_PKCS8).unwrap(), signer(ED25519));
    assert_eq!(shown, "DkimKey(rsa) DkimSigner(2026-06._domainkey.example.com)");
}

#[test]
fn selectors_and_domains() {
    for selector in ["s1", "2026-06", "offramp.mail_2"] {
        assert_eq!(parse_selector(selector).as_deref(), Ok(selector));
    }
    for selector in ["", ".", "s1.", "s 1", "sélecteur", "s1;", &"s".repeat(64)] {
        assert!(parse_selector(selector).is_err(), "{selector}");
    }
    for (domain, expected) in
        [("example.com", "example.com"), (" Example.COM. ", "example.com"), ("école.example", "xn--cole-9oa.example")]
    {
        assert_eq!(parse_domain(domain).as_deref(), Ok(expected));
    }
    for domain in ["", "192.0.2.1", "example.com/x", "a b", "example.com;x=y"] {
        assert!(parse_domain(domain).is_err(), "{domain}");
    }
}

/// The example of RFC 6376 §3.4.5.
#[test]
fn headers_and_bodies_are_canonicalised() {
    let headers = b"A: X\r\nB : Y\t\r\n\tZ  \r\n";
    let fields = fields(headers);
    let relaxed: Vec<String> = fields
        .iter()
        .map(|field| {
            let mut relaxed = Vec::new();
            relaxed_field(field, &mut relaxed);
            String::from_utf8(relaxed).unwrap()
        })
        .collect();
    assert_eq!(relaxed, ["a:X", "b:Y Z"]);
    assert!(is_named(fields[1], "b") && !is_named(fields[1], "a"));

    for (body, expected) in
        [(" C \r\nD \t E\r\n\r\n\r\n", " C\r\nD E\r\n"), ("\r\n\r\na\r\n \r\n", "\r\n\r\na\r\n"), ("a", "a"), ("", "")]
    {
        assert_eq!(String::from_utf8(relaxed_body(body.as_bytes())).unwrap(), expected, "{body:?}");
    }
}

#[test]
fn signatures_are_deterministic_and_well_formed_headers() {
    let at = DateTime::from_timestamp(1_781_438_400, 0).unwrap();
    let headers = b"From: Club <no-reply@example.com>\r\nSubject: Hello\r\n";
    for pem in [RSA_PKCS8, ED25519] {
        let signer = signer(pem);
        let signature = signer.sign(headers, b"Hello\r\n", at).unwrap();
        assert_eq!(signature, signer.sign(headers, b"Hello\r\n", at).unwrap());
        assert_eq!(fields(signature.as_bytes()).len(), 1, "{signature}");
        for line in signature.split_terminator("\r\n") {
            assert!(line.len() <= 78 && line.is_ascii() && !line.trim().is_empty(), "{line}");
        }
        assert!(
            signature.contains("; t=1781438400;\r\n d=example.com;\r\n s=2026-06;\r\n h=From:Reply-To:"),
            "{signature}"
        );
    }
}

//! Texts as messages may hold them: no credentials, no signatures, nothing that forges a line.

use std::borrow::Cow;

/// The longest text that [`printable`] repeats, in characters.
const LONGEST: usize = 1000;

/// Returns an address without what may be secret: a user before the host, the query, the fragment.
/// It need not be a valid one.
///
/// ```
/// use agent_core::shown::address;
///
/// assert_eq!(address("https://me:hush@host/a?sig=hush"), "https://…@host/a?…");
/// ```
pub fn address(text: &str) -> String {
    printable(&hidden(text))
}

/// Returns a text in which [`address`] has been applied to every address with a scheme.
pub fn scrub(text: &str) -> Cow<'_, str> {
    let mut scrubbed = String::new();
    let mut done = 0;
    while let Some(found) = text[done..].find("://") {
        let mark = done + found;
        let scheme = text[done..mark]
            .rfind(|c: char| !c.is_ascii_alphanumeric() && !"+.-".contains(c))
            .map_or(done, |at| {
                let before = text[done + at..].chars().next();
                done + at + before.map_or(0, char::len_utf8)
            });
        let ends = |c: char| c.is_whitespace() || c.is_control() || "\"'`<>".contains(c);
        let end = text[mark..].find(ends).map_or(text.len(), |at| mark + at);
        // A quote may be escaped, as in JSON.
        let address = text[scheme..end].trim_end_matches('\\');
        scrubbed.push_str(&text[done..scheme]);
        scrubbed.push_str(&hidden(address));
        done = scheme + address.len().max(mark + 3 - scheme);
        done = done.min(text.len());
    }
    if scrubbed.is_empty() && done == 0 {
        return Cow::Borrowed(text);
    }
    scrubbed.push_str(&text[done..]);
    Cow::Owned(scrubbed)
}

fn hidden(text: &str) -> String {
    let scheme = scheme(text);
    let (scheme, rest) = text.split_at(scheme);
    let separators: &[char] = &['/', '\\'];
    let host = rest.len() - rest.trim_start_matches(separators).len();
    let authority_end = |from: usize| {
        rest[from..]
            .find(['/', '\\', '?', '#'])
            .map_or(rest.len(), |at| from + at)
    };
    // An authority whose port is none is a name and a password with a character that ends it.
    let mut user = host;
    let end = authority_end(host);
    let authority = &rest[host..end];
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_odd = match authority.split_once(':') {
        _ if authority.starts_with('[') => false,
        Some((_, port)) => !is_port(port),
        None => false,
    };
    let is_cut_short = is_odd || rest[end..].starts_with(['?', '#']);
    let within = match is_cut_short {
        true => rest,
        false => &rest[..end],
    };
    if let Some(at) = within.rfind('@').filter(|at| *at >= host) {
        user = at;
    }
    let end = authority_end(user);
    let query = rest[end..].find(['?', '#']).map(|at| end + at);
    let path = &rest[user..query.unwrap_or(rest.len())];
    let mut shown = format!("{scheme}{}", &rest[..host]);
    if user > host || rest[user..].starts_with('@') {
        shown.push('…');
    }
    shown.push_str(path);
    if let Some(query) = query {
        shown.push_str(&rest[query..=query]);
        if query + 1 < rest.len() || rest[query..].len() == 1 {
            shown.push('…');
        }
    }
    shown
}

/// The length of a scheme and its colon; without slashes behind it, only what cannot be a user is
/// one.
fn scheme(text: &str) -> usize {
    let Some(colon) = text.find(':') else {
        return 0;
    };
    let name = &text[..colon];
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte));
    let is_web = ["http", "https"]
        .iter()
        .any(|web| web.eq_ignore_ascii_case(name));
    let has_slash = text[colon + 1..].starts_with(['/', '\\']);
    if is_name && (is_web || has_slash || !text.contains('@')) {
        colon + 1
    } else {
        0
    }
}

/// Returns a text of which each line of a log holds a whole: control characters escaped, cut when
/// it is very long.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LONGEST));
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST {
            shown.push('…');
            break;
        }
        push_escaped(&mut shown, c);
    }
    shown
}

/// Returns a text on one line: whatever ends a line, moves the cursor or turns the direction of
/// writing is escaped.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_disguise) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        push_escaped(&mut shown, c);
    }
    Cow::Owned(shown)
}

fn push_escaped(shown: &mut String, c: char) {
    if is_disguise(c) {
        shown.extend(c.escape_default());
    } else {
        shown.push(c);
    }
}

/// Whether a character can make a line look like another one.
fn is_disguise(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_addresses_are_shown_as_they_are() {
        for text in [
            "",
            "localhost",
            "localhost:4200",
            "http://localhost:4200/graphql",
            "http://:8080",
            "http://[::1]:4200",
            "http://[::1]",
            "http://host:/a",
            "s3://bucket/a b/ü+.yaml",
            "https://host:8080/job.yaml",
            "https://host:8080/@scope/job.yaml",
            "c:job.yaml",
        ] {
            assert_eq!(address(text), text);
        }
    }

    #[test]
    fn credentials_are_hidden_in_every_form() {
        for (text, expected) in [
            ("HTTPS://me:hush@host/a?sig=hush#f", "HTTPS://…@host/a?…"),
            ("http:\\\\me:hush@host\\a", "http:\\\\…@host\\a"),
            ("http:me:hu@sh@host", "http:…@host"),
            ("http:/me:hush@host", "http:/…@host"),
            ("http://me:hu@sh@host:80/a", "http://…@host:80/a"),
            ("http://me:hu/sh@host/a", "http://…@host/a"),
            ("http://me:hu?sh@host/a", "http://…@host/a"),
            ("http://me:hu#sh@host/a", "http://…@host/a"),
            ("http://me:1#hush@host/a", "http://…@host/a"),
            ("me:hush@host:4200", "…@host:4200"),
            ("hush@host", "…@host"),
            (" http://me:hush@host", "…@host"),
            ("://me:hush@host", "…@host"),
            ("http://@host/", "http://…@host/"),
            ("http://host?token=hush", "http://host?…"),
            ("host/graphql?token=hush", "host/graphql?…"),
            ("ftp://me:hush@host/a#hush", "ftp://…@host/a#…"),
            ("s3://b/k?X-Amz-Signature=hush", "s3://b/k?…"),
        ] {
            assert_eq!(address(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_are_found_in_a_text() {
        for (text, expected) in [
            ("nothing here: // a@b", "nothing here: // a@b"),
            (
                "cannot use \"http://me:hush@host/a?b=hush\" (x), nor https://me:hush@b.",
                "cannot use \"http://…@host/a?…\" (x), nor https://…@b.",
            ),
            (
                r#"{"m":"see \"http://me:hush@h/?a=hush\" and","n":"://"}"#,
                r#"{"m":"see \"http://…@h/?…\" and","n":"://"}"#,
            ),
            ("äs3://me:hush@b ", "äs3://…@b "),
            ("a://b://me:hush@c", "a://…@c"),
            ("://", "://"),
        ] {
            assert_eq!(scrub(text), expected, "{text}");
        }
    }

    #[test]
    fn a_text_stays_on_its_line() {
        assert_eq!(
            one_line("a\r\nb\u{1b}[1m\u{2028}ü"),
            "a\\r\\nb\\u{1b}[1m\\u{2028}ü"
        );
        assert_eq!(address("a\nb"), "a\\nb");
        assert_eq!(printable(&"ä".repeat(5000)).chars().count(), LONGEST + 1);
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_shown(text in "\\PC{0,20}(://)?[:/@?#a-z1\\\\\"ü ]{0,30}") {
            let _ = (address(&text), scrub(&text).into_owned());
        }

        #[test]
        fn no_password_is_shown(
            scheme in "(http|https|s3)(://|:/|:)",
            password in "hush[a-z@:/?#]{0,6}",
        ) {
            let text = format!("{scheme}me:{password}@host/a");
            assert!(!address(&text).contains("hush"), "{text}");
            if scheme.ends_with("://") {
                assert!(!scrub(&format!("x {text} y")).contains("hush"), "{text}");
            }
        }
    }
}

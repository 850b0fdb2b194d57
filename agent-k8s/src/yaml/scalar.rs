//! Scalars of YAML 1.1: which plain texts are not text, and what they are.

use agent_core::clip;
use serde_json::{Number, Value};

/// How much of a scalar or a tag is shown in a message, in bytes.
pub(super) const LONGEST_SHOWN: usize = 200;

/// What a scalar is.
#[derive(Debug, PartialEq)]
pub(super) enum Scalar {
    Value(Value),
    /// Its own text.
    Text,
    /// A date or a time, in ISO 8601 as Python writes it.
    Date(String),
    /// The plain `<<`.
    Merge,
}

type Result = std::result::Result<Scalar, String>;

/// What a plain scalar is.
pub(super) fn resolve(text: &str) -> Result {
    let value = match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "<<" => return Ok(Scalar::Merge),
        "=" => return Err("a plain `=` is no value; quote it".to_owned()),
        _ => match boolean(text) {
            Some(value) => Value::Bool(value),
            None if is_int(text) => int(text)?,
            None if is_float(text) => float(text)?,
            None if timestamp(text).is_some() => return date(text),
            None => return Ok(Scalar::Text),
        },
    };
    Ok(Scalar::Value(value))
}

/// A scalar with a standard tag; `None` when no scalar has that tag.
pub(super) fn construct(kind: &str, text: &str) -> Option<Result> {
    let value = match kind {
        "str" => return Some(Ok(Scalar::Text)),
        "null" => Ok(Value::Null),
        "bool" => boolean(&text.to_lowercase())
            .map(Value::Bool)
            .ok_or_else(|| format!("{} is no boolean", shown(text))),
        "int" => int(text),
        "float" => float(text),
        "timestamp" => return Some(date(text)),
        _ => return None,
    };
    Some(value.map(Scalar::Value))
}

/// A scalar in quotes, at a length that suits a message.
fn shown(text: &str) -> String {
    format!("{:?}", clip(text, LONGEST_SHOWN))
}

fn boolean(text: &str) -> Option<bool> {
    if text.len() > "false".len() {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    // Only these three spellings of a word count.
    let mut capital = lower.clone();
    if let Some(first) = capital.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    if text != lower && text != capital && text != lower.to_ascii_uppercase() {
        return None;
    }
    match lower.as_str() {
        "yes" | "true" | "on" => Some(true),
        "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

fn unsigned(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

fn all(text: &str, mut allowed: impl FnMut(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b'_' || allowed(byte))
}

/// Digits and underscores, a digit first.
fn is_digits(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && all(text, |byte| byte.is_ascii_digit())
}

/// `:59` and the like, one or more.
fn is_sixties(text: &str) -> bool {
    text.split(':').all(|part| match part.as_bytes() {
        [ones] => ones.is_ascii_digit(),
        [tens, ones] => (b'0'..=b'5').contains(tens) && ones.is_ascii_digit(),
        _ => false,
    })
}

fn is_int(text: &str) -> bool {
    let text = unsigned(text);
    if let Some(digits) = text.strip_prefix("0b") {
        return all(digits, |byte| matches!(byte, b'0' | b'1'));
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, |byte| byte.is_ascii_hexdigit());
    }
    if let Some(digits) = text.strip_prefix('0') {
        return digits.is_empty() || all(digits, |byte| (b'0'..=b'7').contains(&byte));
    }
    match text.split_once(':') {
        Some((first, rest)) => is_digits(first) && is_sixties(rest),
        None => is_digits(text),
    }
}

fn is_exponent(text: &str) -> bool {
    text.strip_prefix(['e', 'E'])
        .and_then(|text| text.strip_prefix(['-', '+']))
        .is_some_and(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        })
}

fn is_float(text: &str) -> bool {
    let absolute = unsigned(text);
    if matches!(absolute, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let Some((whole, rest)) = absolute.split_once('.') else {
        return false;
    };
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let exponent_fits = exponent.is_empty() || is_exponent(exponent);
    if whole.is_empty() {
        // Without a digit before the point there must be one behind it, and no sign.
        return text.starts_with('.') && is_digits(fraction) && exponent_fits;
    }
    let fraction_fits = fraction.is_empty() || all(fraction, |byte| byte.is_ascii_digit());
    match whole.split_once(':') {
        Some((first, sixties)) => {
            is_digits(first) && is_sixties(sixties) && fraction_fits && exponent.is_empty()
        }
        None => is_digits(whole) && fraction_fits && exponent_fits,
    }
}

fn int(text: &str) -> std::result::Result<Value, String> {
    let clean = text.replace('_', "");
    let wrong = || format!("{} is no whole number", shown(text));
    let (negative, digits) = match clean.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, clean.strip_prefix('+').unwrap_or(&clean)),
    };
    let radix = |digits: &str, radix| u128::from_str_radix(digits, radix).ok();
    let absolute = if digits == "0" {
        Some(0)
    } else if let Some(digits) = digits.strip_prefix("0b") {
        radix(digits, 2)
    } else if let Some(digits) = digits.strip_prefix("0x") {
        radix(digits, 16)
    } else if digits.starts_with('0') {
        radix(digits, 8)
    } else if digits.contains(':') {
        digits.split(':').try_fold(0_u128, |sum, part| {
            sum.checked_mul(60)?.checked_add(part.parse().ok()?)
        })
    } else {
        radix(digits, 10)
    };
    let absolute = absolute
        .filter(|_| !digits.starts_with(['+', '-']))
        .ok_or_else(wrong)?;
    if let Ok(small) = i64::try_from(absolute) {
        return Ok(Value::from(if negative { -small } else { small }));
    }
    match u64::try_from(absolute) {
        Ok(large) if !negative => Ok(Value::from(large)),
        // Past what JSON numbers hold exactly.
        _ => number(
            if negative {
                -(absolute as f64)
            } else {
                absolute as f64
            },
            text,
        ),
    }
}

fn float(text: &str) -> std::result::Result<Value, String> {
    let clean = text.replace('_', "").to_lowercase();
    let (sign, digits) = match clean.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, clean.strip_prefix('+').unwrap_or(&clean)),
    };
    let plain = |digits: &str| {
        let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        numeric.then(|| digits.parse::<f64>().ok()).flatten()
    };
    let value = match digits {
        ".inf" => Some(f64::INFINITY),
        ".nan" => Some(f64::NAN),
        _ if digits.contains(':') => digits
            .split(':')
            .try_fold(0.0, |sum, part| Some(sum * 60.0 + plain(part)?)),
        _ => plain(digits),
    };
    number(
        sign * value.ok_or_else(|| format!("{} is no number", shown(text)))?,
        text,
    )
}

fn number(value: f64, text: &str) -> std::result::Result<Value, String> {
    Number::from_f64(value)
        .map(Value::Number)
        .ok_or_else(|| format!("{} cannot be written in a manifest", shown(text)))
}

/// A float as Python writes it.
pub(super) fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = value.to_string();
        return if text.contains('.') {
            text
        } else {
            text + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The parts of a date or time.
struct Stamp<'a> {
    date: [&'a str; 3],
    time: Option<([&'a str; 3], &'a str, Option<&'a str>)>,
}

/// The parts of a text that has the form of a date or a time.
fn timestamp(text: &str) -> Option<Stamp<'_>> {
    let digits = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (year, rest) = text.split_once('-')?;
    let (month, rest) = rest.split_once('-')?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (day, rest) = rest.split_at(end);
    let date = [year, month, day];
    if rest.is_empty() {
        let full = digits(year, 4..=4) && digits(month, 2..=2) && digits(day, 2..=2);
        return full.then_some(Stamp { date, time: None });
    }
    if !(digits(year, 4..=4) && digits(month, 1..=2) && digits(day, 1..=2)) {
        return None;
    }
    let rest = match rest.strip_prefix(['T', 't']) {
        Some(rest) => rest,
        None => {
            let trimmed = rest.trim_start_matches([' ', '\t']);
            (trimmed.len() < rest.len()).then_some(trimmed)?
        }
    };
    let (hour, rest) = rest.split_once(':')?;
    let (minute, rest) = rest.split_once(':')?;
    let (second, rest) = rest.split_at_checked(2)?;
    if !(digits(hour, 1..=2) && digits(minute, 2..=2) && digits(second, 2..=2)) {
        return None;
    }
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest.split_at(end)
        }
        None => ("", rest),
    };
    let zone = rest.trim_start_matches([' ', '\t']);
    let zone = match zone {
        "" if rest.is_empty() => None,
        "Z" => Some(zone),
        _ => {
            let offset = zone.strip_prefix(['-', '+'])?;
            let (hours, minutes) = offset.split_once(':').unwrap_or((offset, "00"));
            (digits(hours, 1..=2) && digits(minutes, 2..=2)).then_some(Some(zone))?
        }
    };
    let time = Some(([hour, minute, second], fraction, zone));
    Some(Stamp { date, time })
}

/// A date or time, checked and written as Python writes it.
fn date(text: &str) -> Result {
    let wrong = || format!("{} is no date that exists", shown(text));
    let stamp = timestamp(text).ok_or_else(wrong)?;
    let number = |part: &str| part.parse::<u32>().unwrap_or(0);
    let [year, month, day] = stamp.date.map(number);
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => 0,
    };
    if year == 0 || !(1..=days).contains(&day) {
        return Err(wrong());
    }
    let mut iso = format!("{year:04}-{month:02}-{day:02}");
    if let Some((time, fraction, zone)) = stamp.time {
        let [hour, minute, second] = time.map(number);
        if hour > 23 || minute > 59 || second > 59 {
            return Err(wrong());
        }
        iso.push_str(&format!("T{hour:02}:{minute:02}:{second:02}"));
        let micros = number(&format!("{:0<6.6}", fraction));
        if micros != 0 {
            iso.push_str(&format!(".{micros:06}"));
        }
        match zone {
            None => {}
            Some("Z") => iso.push_str("+00:00"),
            Some(zone) => {
                let (hours, minutes) = zone[1..].split_once(':').unwrap_or((&zone[1..], "00"));
                let (hours, minutes) = (number(hours), number(minutes));
                if hours * 60 + minutes >= 24 * 60 {
                    return Err(wrong());
                }
                let sign = if hours + minutes == 0 {
                    "+"
                } else {
                    &zone[..1]
                };
                iso.push_str(&format!("{sign}{hours:02}:{minutes:02}"));
            }
        }
    }
    Ok(Scalar::Date(iso))
}

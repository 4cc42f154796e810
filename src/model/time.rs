//! Times for people.

/// Seconds since the epoch as `2026-11-21 15:04:05 UTC`.
pub fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest % 3600 / 60, rest % 60)
}

/// A time since the epoch as RFC 3339 has it, `2026-11-21T15:04:05.000000001Z`.
pub fn rfc3339(since: std::time::Duration) -> String {
    let text = utc(since.as_secs()).replace(' ', "T");
    let text = text.strip_suffix("TUTC").unwrap_or(&text);
    format!("{text}.{:09}Z", since.subsec_nanos())
}

/// Whether a text is a time as RFC 3339 has it, without leap seconds, of which Go's parser knows none.
pub fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| {
        let digits = bytes.get(from..to).filter(|digits| digits.iter().all(u8::is_ascii_digit));
        digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok())
    };
    let is = |at: usize, byte: u8| bytes.get(at) == Some(&byte);
    let separators = is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':');
    let (Some(year), Some(month), Some(day)) = (number(0, 4), number(5, 7), number(8, 10)) else {
        return false;
    };
    let (Some(hour), Some(minute), Some(second)) = (number(11, 13), number(14, 16), number(17, 19)) else {
        return false;
    };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    let mut zone = 19;
    if is(zone, b'.') {
        let digits = bytes[20..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        zone += 1 + digits;
        if digits == 0 {
            return false;
        }
    }
    let zoned = match bytes.get(zone) {
        Some(b'Z') => bytes.len() == zone + 1,
        Some(b'+' | b'-') => {
            let (hours, minutes) = (number(zone + 1, zone + 3), number(zone + 4, zone + 6));
            let fits = hours.is_some_and(|hours| hours < 24) && minutes.is_some_and(|minutes| minutes < 60);
            fits && is(zone + 3, b':') && bytes.len() == zone + 6
        }
        _ => false,
    };
    separators && (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60 && zoned
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last one of a year and an era of 400 years
/// always has 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_rfc_3339() {
        assert_eq!(rfc3339(Duration::new(951_782_400, 7)), "2000-02-29T00:00:00.000000007Z");
        for (text, good) in [
            ("2000-02-29T00:00:00Z", true),
            ("2024-01-01T00:00:00.123456789012Z", true),
            ("2024-12-31T23:59:59+05:30", true),
            ("2024-12-31T23:59:59.5-23:59", true),
            ("2023-02-29T00:00:00Z", false),
            ("2100-02-29T00:00:00Z", false),
            ("2024-13-01T00:00:00Z", false),
            ("2024-00-01T00:00:00Z", false),
            ("2024-04-31T00:00:00Z", false),
            ("2024-01-00T00:00:00Z", false),
            ("2024-01-01T24:00:00Z", false),
            ("2024-01-01T00:00:60Z", false),
            ("2024-01-01T00:00:00.Z", false),
            ("2024-01-01T00:00:00", false),
            ("2024-01-01T00:00:00+24:00", false),
            ("2024-01-01T00:00:00+0000", false),
            ("2024-01-01T00:00:00Zx", false),
            ("2024-01-01t00:00:00Z", false),
            ("2024-01-01 00:00:00Z", false),
            ("+024-01-01T00:00:00Z", false),
            ("", false),
            ("2024-01-01T00:00:0é", false),
        ] {
            assert_eq!(is_rfc3339(text), good, "{text}");
        }
    }

    #[test]
    fn dates_are_those_of_date_u() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}

//! `strftime_now`: Python's `datetime.strftime` in UTC, in the C locale.

/// Formats `seconds` since 1970-01-01T00:00:00Z. Unknown directives are copied as they are.
pub(super) fn strftime(format: &str, seconds: i64) -> String {
    let time = Time::new(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            // glibc's flag for "without padding".
            Some('-') => match chars.next() {
                Some(d) => match time.directive(d) {
                    Some(text) => {
                        let bare = text.trim_start_matches(['0', ' ']);
                        out += if bare.is_empty() { "0" } else { bare };
                    }
                    None => out.extend(['%', '-', d]),
                },
                None => out += "%-",
            },
            Some(d) => match time.directive(d) {
                Some(text) => out += &text,
                None => out.extend(['%', d]),
            },
            None => out.push('%'),
        }
    }
    out
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

struct Time {
    year: i64,
    /// From 1.
    month: usize,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// From Sunday, 0.
    weekday: usize,
    /// From 1.
    yearday: i64,
    seconds: i64,
}

impl Time {
    /// The proleptic Gregorian date, after Hinnant, "chrono-compatible low-level date algorithms".
    fn new(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        Self {
            year,
            month: month as usize,
            day,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            weekday: (days + 4).rem_euclid(7) as usize,
            yearday: before + day + i64::from(leap && month > 2),
            seconds,
        }
    }

    fn directive(&self, d: char) -> Option<String> {
        let hour12 = (self.hour + 11) % 12 + 1;
        let month = MONTHS[self.month - 1];
        let day = DAYS[self.weekday];
        Some(match d {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'C' => format!("{:02}", self.year.div_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour12:02}"),
            'k' => format!("{:2}", self.hour),
            'l' => format!("{hour12:2}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'f' => "000000".into(),
            'j' => format!("{:03}", self.yearday),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.into(),
            'B' => month.into(),
            'b' | 'h' => month[..3].into(),
            'A' => day.into(),
            'a' => day[..3].into(),
            'w' => self.weekday.to_string(),
            'u' => (if self.weekday == 0 { 7 } else { self.weekday }).to_string(),
            'U' => format!("{:02}", (self.yearday + 6 - self.weekday as i64) / 7),
            'W' => format!("{:02}", (self.yearday + 6 - (self.weekday as i64 + 6) % 7) / 7),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year.rem_euclid(100)),
            'T' | 'X' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'c' => format!(
                "{} {} {:2} {:02}:{:02}:{:02} {}",
                &day[..3],
                &month[..3],
                self.day,
                self.hour,
                self.minute,
                self.second,
                self.year
            ),
            's' => self.seconds.to_string(),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            // A naive datetime has no zone.
            'z' | 'Z' => String::new(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates() {
        let at = 1_753_531_200; // 2025-07-26T12:00:00Z, a Saturday
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S", at), "2025-07-26 12:00:00");
        assert_eq!(strftime("%d %b %Y, %A %-I %p %j %%", at), "26 Jul 2025, Saturday 12 PM 207 %");
        assert_eq!(strftime("%e|%-d|%q", 951_782_400), "29|29|%q"); // 2000-02-29
        assert_eq!(strftime("%F %a %U %W", -1), "1969-12-31 Wed 52 52");
    }
}

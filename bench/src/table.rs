//! Records as a table for people.

use crate::Record;

const HEADINGS: [&str; 7] = ["name", "p50", "p95", "p99", "unit", "samples", "baseline"];

/// Lays records out as aligned columns, one line each under a line of headings.
///
/// Figures are aligned to the right and words to the left.
#[must_use]
pub fn table(records: &[Record]) -> String {
    let headings = HEADINGS.map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(headings)
        .chain(records.iter().map(row))
        .collect();
    let widths: [usize; 7] = std::array::from_fn(|column| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if matches!(column, 1..=3 | 5) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(record: &Record) -> [String; 7] {
    let baseline = match (&record.baseline, record.ratio) {
        (Some(baseline), Some(ratio)) => {
            format!("{ratio:.2} × {} ({})", baseline.name, figure(baseline.p50))
        }
        (Some(baseline), None) => format!("{} ({})", baseline.name, figure(baseline.p50)),
        (None, _) => String::new(),
    };
    [
        record.name.clone(),
        figure(record.p50),
        figure(record.p95),
        figure(record.p99),
        record.unit.clone(),
        record.samples.to_string(),
        baseline,
    ]
}

/// Three significant digits are what a benchmark on a busy machine can promise.
fn figure(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_ratio_comes_first() {
        let records = [
            Record::of("boot.healthy", "ms", vec![3512.0])
                .unwrap()
                .against("firecracker", 3600.0),
            Record::of("vmm.rss_overhead", "MiB", vec![4.25]).unwrap(),
        ];
        assert_eq!(
            table(&records),
            "\
name               p50   p95   p99  unit  samples  baseline
boot.healthy      3512  3512  3512  ms          1  0.98 × firecracker (3600)
vmm.rss_overhead  4.25  4.25  4.25  MiB         1
"
        );
    }
}

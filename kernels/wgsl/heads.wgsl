// Which rows and which matrix a workgroup of a product for each head has. Rows are counted head by head, all of a head's
// capacity.
fn work_of(run: u32) -> Work {
    let head = run / p.runs;
    let first = run % p.runs * ROWS;
    return Work(head * p.rows + first, head * p.rows + live_rows(p.rows, p.live), head * p.panels);
}

fn x_first(row: u32) -> u32 {
    return p.x + row % p.rows * p.x_stride + (p.first_head + row / p.rows) * p.x_head;
}

fn out_first(row: u32) -> u32 {
    return p.out + row % p.rows * p.out_stride + (p.first_head + row / p.rows) * p.out_head;
}

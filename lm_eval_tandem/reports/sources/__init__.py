"""What a report is made from: result, sample and ledger files, joined by question."""

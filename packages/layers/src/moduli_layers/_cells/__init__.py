"""Recurrent cells: ``base`` says what a cell is, the other files hold one family each."""

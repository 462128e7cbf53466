// The board. For another one, write board.c anew and edit board.ld.
#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>

// Switches on the serial line.
void board_start(void);
// Sends one byte. Waits until the transmitter has room for it.
void board_write(char byte);
// Ends the program.
_Noreturn void board_exit(bool success);

#endif

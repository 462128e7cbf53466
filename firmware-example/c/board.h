// The board. For another one, write board.c anew and edit board.ld.
#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>

// Makes the serial line ready.
void board_start(void);
// Sends one byte, and waits for room if need be.
void board_write(char byte);
// Ends the program.
_Noreturn void board_exit(bool success);

#endif

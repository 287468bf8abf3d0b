/* order.h - what reads memory after a node has written it depends on that node. Used by import.c. */
#ifndef GG_ORDER_H
#define GG_ORDER_H

#include "graph.h"

/* The same graph with these dependencies; NULL after filling err. */
gg_graph *gg_order_writes(const gg_graph *g, gg_error *err);

#endif
